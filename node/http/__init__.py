"""The public face: HTTP on aiohttp, for the cluster's users and for whoever watches the node.

It knows :mod:`node.service` (what it asks of the node), the error tree and the limits; it must not know how
objects are stored, replicated or found.

Reading order::

    target        a raw request target: which resource, which object, which parameters   pure
    parameters    the values of query parameters                                         pure
    conditions    If-Match and its kin, for reads and for writes                         pure
    ranges        Range, start/end                                                       pure
    digests       Content-Digest and its kin                                             pure
    times         RFC 3339 and HTTP dates                                                pure
    call          one request on its way through the handlers, and its answer
    views         objects as JSON and as headers
    put, get, delete, restore, versions, listing, explain: one operation each
    endpoints     what the node says of itself
    openapi       the same contract as a document
    routes        which operation answers which method of which resource
    problem       every error as application/problem+json
    app           around each request: its id, the token, errors, metrics, the access log
    aiohttp_lane  requests that aiohttp read, answered by its responses
    connection    one connection: timeouts, errors of the HTTP parser, half-closed clients
    heads         requests that every parser reads alike, and the heads of answers          pure
    fast_lane     small requests of that sort, answered without aiohttp (rfc/0008)
    server        listening, and closing gracefully
"""

from node.http.app import App, build_app
from node.http.server import HttpServer, Timeouts

__all__ = ["App", "HttpServer", "Timeouts", "build_app"]
