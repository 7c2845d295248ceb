"""Celery's side: the consumer that claims in bulk, and everything that makes a batch look like Celery's own tasks."""

from .setup import setup

__all__ = ["setup"]
