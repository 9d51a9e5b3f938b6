"""The archive on a node: the parts of rfc/0016 that need peers, routes and HTTP."""
