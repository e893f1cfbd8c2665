"""How good a trained model is: a judge of held-out sounds, distances between sounds, and the report made of both."""
