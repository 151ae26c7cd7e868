# Serving only: no torch. Two stages, so that neither pip nor the sources are in the image.
FROM python:3.11-slim AS build
RUN python -m venv --without-pip /opt/venv
WORKDIR /src
COPY pyproject.toml constraints.txt ./
ARG EXTRAS=postgres
# The packages first, on a project without modules: a change of code does not fetch them again.
RUN touch README.md LICENSE NOTICE \
 && pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[$EXTRAS]"
COPY README.md LICENSE NOTICE ./
COPY app app
COPY model model
COPY migrations migrations
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall .

FROM python:3.11-slim
RUN groupadd --system --gid 10001 facegallery \
 && useradd --system --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin facegallery \
 && install --directory --owner facegallery --group facegallery --mode 0750 /data
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    FACEGALLERY_HOST=0.0.0.0 \
    FACEGALLERY_PORT=8000 \
    FACEGALLERY_DATA_DIR=/data \
    FACEGALLERY_LOG_FORMAT=json
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# A start that builds its indexes anew takes one to two minutes; the certificate is for other names than the loopback's.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-c", \
  "import os, ssl, urllib.request as u; e = os.environ; tls = e.get('FACEGALLERY_TLS_CERTIFICATE'); u.urlopen(('https' if tls else 'http') + '://127.0.0.1:' + e['FACEGALLERY_PORT'] + '/readyz', timeout=4, context=ssl._create_unverified_context() if tls else None)"]
CMD ["facegallery", "serve", "--migrate"]
