from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

settings = ConfigParser(delimiters=["="])
settings.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
settings = settings["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=settings["keywords"],
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Natural Language :: English",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    packages=find_packages(include=["coding_vessels", "coding_vessels.*"]),
    package_data={"coding_vessels": ["assets/*", "py.typed"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={
        "engines": settings["engines_requirements"].split(),
        "cluster": settings["cluster_requirements"].split(),
        "gpu": settings["gpu_requirements"].split(),
        "projection": settings["projection_requirements"].split(),
        "dev": [
            package
            for group in ("dev", "engines", "projection", "cluster")
            for package in settings[f"{group}_requirements"].split()
        ],
    },
    entry_points={"console_scripts": settings["console_scripts"].split()},
    zip_safe=False,
)
