"""Which packages there are. pyproject.toml cannot say that conf/, which stands beside them, goes into one of them."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["analysis*", "ngrpo*", "hydra_plugins*"]), "ngrpo.conf"],
    package_dir={"ngrpo.conf": "conf"},
)
