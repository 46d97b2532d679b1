"""Installs the recipes in configs/ as charlm.recipes. Everything else about the package is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["charlm", "charlm.*"]), "charlm.recipes"], package_dir={"charlm.recipes": "configs"})
