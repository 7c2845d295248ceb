# A worker that runs the models in examples/. Yours needs its own model code in their place.
FROM python:3.11-slim

WORKDIR /srv

# PyTorch by itself and first: the largest layer, and the one that changes least.
COPY constraints.txt .
RUN pip install --no-cache-dir torch -c constraints.txt

COPY pyproject.toml README.md LICENSE ./
COPY batchery batchery
COPY configs configs
COPY batchers batchers
COPY producer producer
COPY worker worker
RUN pip install --no-cache-dir '.[demo,flower]' -c constraints.txt \
    # The installed package is what runs: a folder named like it would come first on the path.
    && rm -rf batchery configs batchers producer worker build *.egg-info

COPY examples examples

# Celery warns when it runs as root, and nothing here needs it.
RUN useradd --create-home batchery
USER batchery

CMD ["celery", "-A", "examples.embedding", "worker", "--loglevel", "INFO"]
