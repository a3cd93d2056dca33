"""Where clicks come from, where state is kept, and how messages are read."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from online.config.data_folder import default_data_dir
from online.config.sections.fields import Port, Positive, Rate, Seconds, Share, fixed, setting


class StreamSettings(BaseSettings):
    """Kafka, Redis, topics and messages. Without a broker or a Redis, the embedded parts take their place."""

    kafka_bootstrap_servers: str | None = setting(
        None,
        "Kafka brokers to connect to first, as host:port[,host:port]. Unset: the embedded log in the data folder.",
        "Set it in production.",
    )
    redis_url: SecretStr | None = setting(
        None,
        "Redis that holds the lists, as redis://host:port/0; redis+cluster://host:port,host:port for a cluster; "
        "redis+sentinel://host:port,host:port/service for sentinels. rediss for TLS. Unset: the embedded Redis.",
        "Set it in production.",
    )
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Folder of the checkpoints and of the embedded log. Unset: the user's own, "
        "~/.local/share/nextclick.",
        json_schema_extra={"advice": "Put it on a disk that survives a restart."},
    )
    clicks_topic: str = setting("clicks", "Topic that clicks are read from.", min_length=1)
    items_topic: str = setting("items", "Compacted topic that says which items are available.", min_length=1)
    dead_letters_topic: str = setting(
        "clicks.dead", "Topic that receives the messages that could not be read.", min_length=1
    )
    events_topic: str = setting(
        "nextclick.events", "Topic that receives notices about the model and the worker.", min_length=1
    )
    impressions_topic: str = setting(
        "nextclick.impressions", "Topic of the lists that were shown, with the probability of each item.", min_length=1
    )
    feedback_topic: str = setting(
        "nextclick.feedback", "Topic of what users say of items: which not to show them, and dislikes.", min_length=1
    )
    users_topic: str | None = setting(
        None,
        "Compacted topic of users' attributes and tags. Unset: there is none, and nothing of them is used.",
        "Set it, to users for example, where something is known of users before they click.",
        min_length=1,
    )
    consumer_group: str = setting("nextclick", "Kafka consumer group of the worker.", min_length=1)
    workers: Literal["one", "many"] = setting(
        "one",
        "Whether one worker serves all users, or many of a consumer group share them and one model. Many need Kafka.",
        "Set many on every worker of the group when one cannot keep up, or when a standby must take over at once.",
    )
    worker_name: str | None = setting(
        None,
        "Name of this worker among many: letters, digits, '.', '_' and '-'. Unset: one is made up at each start.",
        "Give each worker its own, which it keeps when it is restarted.",
        min_length=1,
        max_length=249,
        pattern=r"^[A-Za-z0-9._-]+$",
    )
    static_membership: bool = setting(
        False,
        "Whether a worker that is back within the session timeout, under the same name, gets the partitions that it "
        "had. Otherwise others take them when it stops.",
        "Set it where restarts are short and each worker has a name.",
    )
    session_timeout_s: Rate = setting(
        6.0,
        "Time after which one of many workers that gives no sign of life is taken for dead, and others take its "
        "partitions over. The broker's group.min.session.timeout.ms is its least.",
    )
    weights_topic: str = setting(
        "nextclick.weights", "Topic of one partition over which many workers average their weights.", min_length=1
    )
    control_topic: str = setting(
        "nextclick.control",
        "Topic of one partition to which nothing is written: the one of many workers that the group gives it to leads.",
        min_length=1,
    )
    topic_partitions: Positive = setting(4, "Partitions of the clicks topic, where nextclick creates it.")
    log_records_max: Positive = setting(5_000_000, "Messages that the embedded log keeps in each partition.")
    embedded_redis_port: Port = setting(6390, "Port of the embedded Redis on 127.0.0.1.")
    message_bytes_max: Positive = setting(65_536, "Largest message that is read. A larger one becomes a dead letter.")
    future_s_max: Seconds = setting(
        86_400.0, "How far ahead of the worker's clock a click's time may be. Beyond it the click is a dead letter."
    )
    click_fields: str = setting(
        "",
        "Names of a click's fields in your messages, as in user_id=user.id,timestamp=ts. Empty: nextclick's own.",
        "Set it where producers use other names.",
    )
    unreadable_share: Share = setting(
        0.2, "Share of a topic's latest messages that cannot be read at which a notice is emitted. 0: never."
    )
    unreadable_messages: Annotated[int, Field(ge=2)] = fixed(
        1_000, "Latest messages of a topic over which the share of unreadable ones is taken."
    )
    internal_errors_in_a_row_max: Positive = setting(
        10, "Consecutive events that may fail because of a bug in nextclick before the worker stops."
    )
    offset_out_of_range: Literal["earliest", "stop"] = setting(
        "earliest",
        "What the worker does where messages were deleted before it read them: it continues at the earliest message "
        "that is left, or stops.",
        "Choose stop where a gap must be looked at first.",
    )
    items_records_max: Positive = fixed(500, "Records of the items topic that are taken after each micro-batch.")
    items_interval_s: Rate = fixed(0.2, "Time between two reads of the items topic.")
    feedback_records_max: Positive = fixed(500, "Records of the feedback topic that are taken after each micro-batch.")
    feedback_interval_s: Rate = fixed(0.2, "Time between two reads of the feedback topic.")
    users_records_max: Positive = fixed(500, "Records of the users topic that are taken after each micro-batch.")
    users_interval_s: Rate = fixed(1.0, "Time between two reads of the users topic.")
    event_ids_held: Positive = setting(
        200_000, "Latest event ids that are remembered in order to recognise clicks that are delivered again."
    )
    create_topics: bool = setting(
        True, "Whether missing topics are created. If false, the worker waits until they exist."
    )
    retry_s_min: Rate = setting(0.5, "First wait before an unavailable Kafka or Redis is tried again.")
    retry_s_max: Rate = setting(5.0, "Longest wait between two such attempts.")
