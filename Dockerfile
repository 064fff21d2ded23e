# upcycle on an NVIDIA GPU. torch's wheel brings the CUDA libraries; the base image brings what lets a container see the GPU.
#
#     docker build -t upcycle .
#     docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/models" upcycle plan demo:tiny
ARG BASE=nvidia/cuda:12.8.1-base-ubuntu24.04
FROM ${BASE}

# gcc and Python's headers are what torch.compile (`train --compile`) builds its kernels with.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/upcycle/bin:$PATH \
    HF_HOME=/models/.cache/huggingface \
    UPCYCLE_CACHE=/models/.cache/upcycle \
    TORCHINDUCTOR_CACHE_DIR=/models/.cache/inductor \
    TRITON_CACHE_DIR=/models/.cache/triton \
    HOME=/tmp

COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY recipes /src/recipes
COPY upcycle /src/upcycle
RUN python3 -m venv /opt/upcycle \
    && pip install --no-cache-dir --constraint /src/constraints.txt '/src[gguf]' \
    && rm -rf /src

WORKDIR /models
ENTRYPOINT ["upcycle"]
CMD ["--help"]
