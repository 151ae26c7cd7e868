# Serving only: no torch. Two stages, so that neither pip nor its cache is in the image.
FROM python:3.11-slim AS build
RUN python -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY app app
COPY model model
COPY migrations migrations
RUN /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[postgres]' \
 && find /opt/venv -name __pycache__ -prune -exec rm -rf {} + \
 && rm -rf /opt/venv/lib/python3.11/site-packages/pip /opt/venv/lib/python3.11/site-packages/pip-*

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin facegallery \
 && mkdir /data && chown facegallery /data
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    FACEGALLERY_HOST=0.0.0.0 \
    FACEGALLERY_PORT=8000 \
    FACEGALLERY_DATA_DIR=/data \
    FACEGALLERY_LOG_FORMAT=json
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["facegallery", "serve", "--migrate"]
