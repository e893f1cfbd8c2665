"""Maps the top-level folders to import names; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    package_dir={
        "ezaudio": "ezaudio",
        "ezaudio.export": "export",
        "ezaudio.kernels": "kernels",
        "ezaudio.runtime": "runtime",
    },
    packages=[
        "ezaudio",
        "ezaudio.data",
        "ezaudio.data.synthesis",
        "ezaudio.evaluation",
        "ezaudio.export",
        "ezaudio.kernels",
        "ezaudio.runtime",
        "ezaudio.runtime.cpp",
        "ezaudio.runtime.engines",
        "ezaudio.runtime.torch_backend",
        "ezaudio.training",
        "ezaudio.training.nano",
    ],
)
