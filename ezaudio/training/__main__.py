"""For accelerate's launcher: `accelerate launch -m ezaudio.training …`."""

from ezaudio.training.cli import main

if __name__ == "__main__":
    main()
