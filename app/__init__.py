"""The service: HTTP and command line (`app.api`, `app.cli`) around a gallery of faces (`app.gallery`)."""
