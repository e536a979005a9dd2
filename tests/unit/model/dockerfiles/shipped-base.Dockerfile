# The common base.
FROM nvcr.io/nvidia/pytorch:25.01-py3

RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        # for the development checkout
        python3-pip \
        python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m pip install --no-cache-dir --upgrade pip setuptools
WORKDIR /workspace
