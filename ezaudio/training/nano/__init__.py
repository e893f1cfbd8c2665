"""The recipe of the packaged model: small enough for two CPU cores, with a data-driven start and stages by time."""
