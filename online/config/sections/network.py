"""The network: its shape, its device, and the memory it reads."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, NoDecode

from online.config.sections.fields import Positive, fixed, setting


class NetworkSettings(BaseSettings):
    """The network. Checkpoints fit only the shape they were written with."""

    device: Literal["auto", "cpu", "cuda"] = setting("auto", "Where the network runs. auto: on CUDA if there is any.")
    threads: Positive = setting(1, "CPU threads of torch.", "More than one rarely helps: the steps are small.")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "Number format of the network's matrix products. auto: bfloat16 on CUDA, float32 on a CPU."
    )
    seed: int = setting(0, "Seed of all random numbers.")
    reformer: bool = setting(
        True, "Whether recall and the network's state are used.", "Set it to false only to measure what they add."
    )
    deep_state: bool = setting(
        True, "Whether recall uses the network's state.", "Set it to false only to measure what it adds."
    )
    layers: Annotated[tuple[Literal["local", "lsh"], ...], NoDecode] = setting(
        ("local", "lsh"), "Attention of each layer, from the first on: local or lsh. Comma-separated.", min_length=1
    )
    width: Positive = setting(32, "Width of item vectors and states.")
    heads: Positive = setting(2, "Attention heads. The width must be a multiple of it.")
    rounds: Positive = setting(2, "Rounds of hashing in LSH attention.")
    buckets: Positive = setting(8, "Buckets of LSH attention (even).")
    window: Annotated[int, Field(ge=2)] = setting(16, "Positions that a click attends to in its bucket or locally.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = setting(0.0, "Dropout in fine-tuning.")
    online_history: Annotated[int, Field(ge=2)] = setting(
        32, "Latest clicks that the network reads of a user for whom it holds no attention memory."
    )
    memory_users_held: Positive = setting(
        2_048,
        "Users whose attention memory is held, so that only new clicks have to be read.",
        "Raise it towards the number of users who are active at once.",
    )
    memory_dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "bfloat16", "Number format of the keys and values in attention memories."
    )
    memory_updates_max: Positive = fixed(10_000, "Updates of the weights after which a memory is rebuilt.")
    memory_rebuilds_max: Positive = fixed(4, "Memories that are rebuilt from histories in one turn.")
