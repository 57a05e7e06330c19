# The commands, with torch's CPU build:
#
#   docker build --tag llama-index-refine .
#   docker run --rm llama-index-refine demo
#   docker run --rm --publish 127.0.0.1:7860:7860 llama-index-refine ui --host 0.0.0.0 --port 7860
FROM python:3.12-slim

ARG EXTRAS=demo,ui

WORKDIR /package
COPY pyproject.toml README.md LICENSE ./
COPY llama_index_refine ./llama_index_refine
RUN python -m pip install --no-cache-dir uv \
    && uv pip install --system --no-cache --torch-backend=cpu ".[$EXTRAS]" \
    && useradd --create-home reader

USER reader
WORKDIR /home/reader
ENTRYPOINT ["llama-index-refine"]
CMD ["--help"]
