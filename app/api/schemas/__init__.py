"""Shapes of what goes over HTTP; a module for each resource, named as its routes are."""
