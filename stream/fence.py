"""A list is written only if Redis holds no newer one: so that a worker that was thought dead overwrites nothing.

Redis runs the comparison and the write as one step (Lua, one key). The position of a list's latest click stands near
the end of its JSON, so that neither the whole value is read nor any of it decoded.
"""

import re
from collections.abc import Sequence

_POSITION = re.compile(r"([0-9]{1,18}):([0-9]{1,18})")
_TAIL_BYTES = 256  # of a list's JSON: its fields from `version` on

# A string of JSON cannot hold `"offset":"` itself: its quotes would be escaped.
SCRIPT = f"""
local tail = redis.pcall('GETRANGE', KEYS[1], -{_TAIL_BYTES}, -1)
if type(tail) == 'string' and #tail > 0 then
  local partition, offset, clicked_at = string.match(tail, '"offset":"(%d+):(%d+)","clicked_at":(-?%d+)')
  if partition == ARGV[1] then
    if tonumber(offset) > tonumber(ARGV[2]) then return 0 end
  elseif partition and tonumber(clicked_at) > tonumber(ARGV[3]) then return 0 end
end
if ARGV[4] == '' then redis.call('DEL', KEYS[1])
elseif ARGV[6] == 'replace' then
  if ARGV[5] == '0' then redis.call('SET', KEYS[1], ARGV[4], 'XX', 'KEEPTTL')
  else redis.call('SET', KEYS[1], ARGV[4], 'XX', 'EX', ARGV[5]) end
else redis.call('SET', KEYS[1], ARGV[4], 'EX', ARGV[5]) end
return 1
"""


def fence_arguments(
    value: str, *, offset: str, clicked_at: int, ttl_s: int | None, replacing: bool
) -> Sequence[str | int]:
    """Returns the arguments of SCRIPT after its key; the script returns 0 where a newer list stands.

    Args:
        value: the list's JSON; empty: the list is deleted.
        offset: "partition:next offset" of the last click that the list reflects.
        clicked_at: that click's time, in milliseconds since 1970.
        ttl_s: seconds until it expires; None: as the list before.
        replacing: whether it is written only if it replaces an existing list.
    """
    position = _POSITION.fullmatch(offset)
    partition, next_offset = position.groups() if position else ("", "0")
    return partition, next_offset, clicked_at, value, ttl_s or 0, "replace" if replacing else ""
