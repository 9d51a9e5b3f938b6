"""The client: AmberBlob from Python, async first, with a thin blocking face.

Reading order: ``types`` (what comes back), ``problems`` (problem+json to the classes of :mod:`amberblob.errors`),
``bodies`` (what can be uploaded, and what of it can be sent twice), ``http`` (one request to one node), ``retry``
(the same request until it is done, on any node), ``reader`` (a download that survives its node), ``aio``
(:class:`AsyncClient`), ``blocking`` (:class:`Client`).

It knows the public HTTP interface and nothing else: it must not import the daemon, the registry or the disks.
"""

from __future__ import annotations

from amberblob.client.aio import AsyncClient
from amberblob.client.blocking import Client, ObjectFile
from amberblob.client.http import Timeouts
from amberblob.client.reader import ObjectReader
from amberblob.client.retry import RetryPolicy
from amberblob.client.types import ListPage, ObjectInfo

__all__ = ["AsyncClient", "Client", "ListPage", "ObjectFile", "ObjectInfo", "ObjectReader", "RetryPolicy", "Timeouts"]
