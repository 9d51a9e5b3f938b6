"""What runs inside Redis, in Lua: each script is one atomic step, and on Redis' own clock.

What lies there, eight keys of fixed names under :data:`NAMESPACE`::

    store      hash: revision (of the whole store), id (made at the first write, for life)
    index      sorted set of all keys, all of score 0: ordered by their bytes
    values     hash: key -> value
    revisions  hash: key -> revision of its last change
    owners     hash: key -> lease
    expires    sorted set: lease -> when it ends, milliseconds since the Unix epoch
    ttls       hash: lease -> milliseconds
    log        stream: one entry per revision, <revision>-0; a field p<key> is a put, d<key> a deletion

Every script first ends the leases that have run out, and answers with the store's revision and id before anything else.
Its first line makes Redis 7 refuse it on a replica, which might know less than was acknowledged.
"""

from __future__ import annotations

NAMESPACE = "amberblob:"
KEYS = tuple(NAMESPACE + name for name in ("store", "index", "values", "revisions", "owners", "expires", "ttls", "log"))

# ARGV: how many revisions the log keeps, an id should the store have none, and then what the script itself takes.
_PRELUDE = """#!lua
local STORE, INDEX, VALUES, REVISIONS, OWNERS, EXPIRES, TTLS, LOG = unpack(KEYS)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function whole(number) return string.format('%.0f', number) end

local function revision() return tonumber(redis.call('HGET', STORE, 'revision') or '0') end

local function append(changes)
  local next_revision = whole(revision() + 1)
  redis.call('HSET', STORE, 'revision', next_revision)
  redis.call('HSETNX', STORE, 'id', ARGV[2])
  redis.call('XADD', LOG, 'MAXLEN', ARGV[1], next_revision .. '-0', unpack(changes))
  return next_revision
end

local function remove(key)
  redis.call('ZREM', INDEX, key)
  redis.call('HDEL', VALUES, key)
  redis.call('HDEL', REVISIONS, key)
  redis.call('HDEL', OWNERS, key)
end

local function end_leases(ended)
  if next(ended) == nil then return end
  local keys, changes = {}, {}
  local owners = redis.call('HGETALL', OWNERS)
  for i = 1, #owners, 2 do
    if ended[owners[i + 1]] then keys[#keys + 1] = owners[i] end
  end
  table.sort(keys)
  for _, key in ipairs(keys) do
    remove(key)
    changes[#changes + 1] = 'd' .. key
    changes[#changes + 1] = ''
  end
  for lease in pairs(ended) do
    redis.call('ZREM', EXPIRES, lease)
    redis.call('HDEL', TTLS, lease)
  end
  if #keys > 0 then append(changes) end
end

-- One that ends later than its whole time from now was written before the clock was set back: ended too.
local function expire()
  local ended = {}
  local leases = redis.call('ZRANGE', EXPIRES, 0, -1, 'WITHSCORES')
  for i = 1, #leases, 2 do
    local ends = tonumber(leases[i + 1])
    if ends <= now or ends > now + tonumber(redis.call('HGET', TTLS, leases[i]) or '0') then ended[leases[i]] = true end
  end
  end_leases(ended)
end

local function answer(...)
  return {whole(revision()), redis.call('HGET', STORE, 'id') or '', ...}
end

expire()
"""

GET = (
    _PRELUDE
    + """
local key = ARGV[3]
return answer(redis.call('HGET', VALUES, key), redis.call('HGET', REVISIONS, key))
"""
)
"""Takes a key; answers its value and revision, or nothing for both."""

RANGE = (
    _PRELUDE
    + """
local prefix = ARGV[3]
local first, last = '-', '+'
if prefix ~= '' then first, last = '[' .. prefix, '(' .. prefix .. '\\255' end
local keys = redis.call('ZRANGEBYLEX', INDEX, first, last)
local values, revisions = {}, {}
for i = 1, #keys do
  values[i] = redis.call('HGET', VALUES, keys[i])
  revisions[i] = redis.call('HGET', REVISIONS, keys[i])
end
return answer(keys, values, revisions)
"""
)
"""Takes a prefix; answers keys, values and revisions, ordered by key."""

TRANSACT = (
    _PRELUDE
    + """
for i = 3, #ARGV, 5 do
  local key, expected, lease = ARGV[i + 1], ARGV[i + 2], ARGV[i + 4]
  if (redis.call('HGET', REVISIONS, key) or '0') ~= expected then return answer(0) end
  if lease ~= '' and redis.call('HEXISTS', TTLS, lease) == 0 then return answer(0) end
end
local changes = {}
local next_revision = whole(revision() + 1)
for i = 3, #ARGV, 5 do
  local kind, key, value, lease = ARGV[i], ARGV[i + 1], ARGV[i + 3], ARGV[i + 4]
  changes[#changes + 1] = kind .. key
  changes[#changes + 1] = value
  if kind == 'd' then
    remove(key)
  else
    redis.call('ZADD', INDEX, 0, key)
    redis.call('HSET', VALUES, key, value)
    redis.call('HSET', REVISIONS, key, next_revision)
    if lease == '' then redis.call('HDEL', OWNERS, key) else redis.call('HSET', OWNERS, key, lease) end
  end
end
append(changes)
return answer(1)
"""
)
"""Takes five words per operation: p or d, key, expected revision, value, lease (or nothing). Answers 1 when made, else 0."""

LEASE = (
    _PRELUDE
    + """
redis.call('ZADD', EXPIRES, whole(now + tonumber(ARGV[4])), ARGV[3])
redis.call('HSET', TTLS, ARGV[3], ARGV[4])
return answer()
"""
)
"""Takes a new lease's name and its milliseconds."""

KEEP = (
    _PRELUDE
    + """
local ttl = redis.call('HGET', TTLS, ARGV[3])
if not ttl then return answer(0) end
redis.call('ZADD', EXPIRES, whole(now + tonumber(ttl)), ARGV[3])
return answer(1)
"""
)
"""Takes a lease; answers 1 while it lives."""

REVOKE = (
    _PRELUDE
    + """
end_leases({[ARGV[3]] = true})
return answer()
"""
)
"""Takes a lease."""

CHANGES = (
    _PRELUDE
    + """
local oldest = redis.call('XRANGE', LOG, '-', '+', 'COUNT', 1)
local first = whole(revision() + 1)
if oldest[1] then first = string.match(oldest[1][1], '%d+') end
local until_expiry = -1
local soonest = redis.call('ZRANGE', EXPIRES, 0, 0, 'WITHSCORES')
if soonest[2] then until_expiry = math.max(0, tonumber(soonest[2]) - now) end
return answer(first, until_expiry, redis.call('XRANGE', LOG, ARGV[3] .. '-0', '+', 'COUNT', ARGV[4]))
"""
)
"""Takes a revision and a number. Answers the first revision that the log has, the milliseconds until a lease ends (-1: none
will), and so many entries of the log from the revision on."""
