"""Each refusal of Redis is one line that says what to do, and shows neither a user's id nor a password."""

import pytest
import redis

from stream.redis_errors import ListsError, RedisTimeoutError, RedisUnavailableError, lists_error

WHERE = "redis://h:1/0"
LIST = "Command # 3 (SET nextclick:top:private-id {...}) of pipeline caused error: "


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (redis.exceptions.MovedError("3999 127.0.0.1:7001"), RedisUnavailableError, "is a cluster (MOVED"),
        (redis.exceptions.ClusterCrossSlotError("Keys hash to different slots"), RedisUnavailableError, "is a cluster"),
        (redis.exceptions.ClusterDownError("Hash slot not served"), RedisUnavailableError, "is a cluster"),
        (redis.ResponseError("SELECT is not allowed in cluster mode"), RedisUnavailableError, "is a cluster"),
        (redis.exceptions.MasterDownError("Link with MASTER is down"), RedisUnavailableError, "lost its primary"),
        (redis.exceptions.ReadOnlyError("You can't write"), RedisUnavailableError, "read-only replica"),
        (
            redis.exceptions.OutOfMemoryError("command not allowed"),
            RedisUnavailableError,
            "maxmemory-policy to allkeys-lru",
        ),
        (redis.ResponseError("MISCONF Redis is configured to save"), RedisUnavailableError, "cannot save to its disk"),
        (redis.ResponseError("NOREPLICAS Not enough good replicas"), RedisUnavailableError, "too few replicas"),
        (redis.ResponseError("BUSY Redis is busy running a script"), RedisUnavailableError, "held up by a script"),
        (
            redis.ResponseError("DENIED Redis is running in protected mode"),
            RedisUnavailableError,
            "is in protected mode",
        ),
        (redis.exceptions.BusyLoadingError("Redis is loading"), RedisUnavailableError, "is loading its data"),
        (redis.ConnectionError("max number of clients reached"), RedisUnavailableError, "raise its maxclients"),
        (redis.ConnectionError("Connection closed by server."), RedisUnavailableError, "ended the connection"),
        (redis.TimeoutError("Timeout reading from h:1"), RedisTimeoutError, "start it, or check NEXTCLICK_REDIS_URL"),
        (redis.ConnectionError("Error 111 connecting to ::1:1. Connection refused."), RedisTimeoutError, "start it"),
        (redis.AuthenticationError("invalid username-password pair"), ListsError, "check NEXTCLICK_REDIS_USERNAME"),
        (redis.ResponseError("DB index is out of range"), ListsError, "no database of that number"),
        (redis.ResponseError("NOPROTO unsupported protocol version"), ListsError, "?protocol=2"),
        (redis.ResponseError("unknown command 'SET'"), ListsError, "Redis 6.2 or later"),
        (redis.ResponseError("something new"), ListsError, "refuses: something new"),
    ],
)
def test_each_refusal_is_one_line_of_its_kind(error, kind, says):
    found = lists_error(error, WHERE)
    assert type(found) is kind
    assert says in str(found)
    assert str(found).count(WHERE) == 1
    assert "::1:1" not in str(found)
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "words",
    [
        LIST + "something with nextclick:top:private-id in it",
        "unknown command 'SET', with args beginning with: 'nextclick:top:private-id' '{' ",
        "unknown command 'AUTH', with args beginning with: 'worker' 'planted' ",
        "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'worker' 'planted' ",
        "ERR planted is no password",
        "No permissions to access the 'nextclick:top:private-id' key",
    ],
)
@pytest.mark.parametrize("kind", [redis.ResponseError, redis.exceptions.NoPermissionError, redis.ConnectionError])
def test_no_line_shows_a_user_id_or_the_password(kind, words):
    line = str(lists_error(kind(words), WHERE, ["planted"]))
    assert "private-id" not in line
    assert "planted" not in line
