"""Random filters as text, and random items that they may be about."""

from hypothesis import strategies as st

from stream.items import Item

NAMES = ("price", "brand", "organic", "title", "größe", "odd name")
TAGS = ("tea", "coffee", "x", 'quo"ted', "Ü")
TEXTS = ("", "a", "b", "Kettle", "a kettle", 'with "quotes" and \\', "ß")
NUMBERS = (0.0, -1.5, 2.0, 20.0, 1e300)

values = st.sampled_from(NUMBERS) | st.sampled_from(TEXTS) | st.booleans()
items = st.builds(
    Item,
    item_id=st.sampled_from([f"i{number}" for number in range(12)]),
    title=st.none() | st.sampled_from(TEXTS),
    tags=st.lists(st.sampled_from(TAGS), max_size=4).map(tuple),
    available=st.booleans(),
    attributes=st.dictionaries(st.sampled_from([name for name in NAMES if name != "title"]), values),
)


def literal(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)


def attribute(name):
    return name if name.isidentifier() else f"`{name}`"


names = st.sampled_from(NAMES).map(attribute)
lists = st.lists(values.map(literal), min_size=1, max_size=4).map(lambda some: f"({', '.join(some)})")
tags = st.lists(st.sampled_from(TAGS).map(literal), min_size=1, max_size=3).map(lambda some: f"({', '.join(some)})")
equal = st.tuples(names, st.sampled_from(["==", "=", "!="]), values.map(literal)).map(" ".join)
ordered = st.tuples(
    names, st.sampled_from(["<", "<=", ">", ">="]), st.sampled_from([*NUMBERS, *TEXTS]).map(literal)
).map(" ".join)
leaves = st.one_of(
    equal,
    ordered,
    st.tuples(names, st.sampled_from(["in", "not in"]), lists).map(" ".join),
    st.tuples(names, st.just("contains"), st.sampled_from(TEXTS).map(literal)).map(" ".join),
    (names | st.just("tags")).map(lambda name: f"missing({name})"),
    st.just("available"),
    names,
    st.tuples(st.just("tags"), st.sampled_from(["any", "all", "none"]), tags).map(" ".join),
)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(lambda text: f"not {text}"),
        inner.map(lambda text: f"({text})"),
        st.lists(inner, min_size=2, max_size=3).map(" and ".join),
        st.lists(inner, min_size=2, max_size=3).map(" or ".join),
    ),
    max_leaves=6,
)
