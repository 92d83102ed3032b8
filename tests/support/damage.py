"""Damaged files, and what readers may make of them."""

import warnings

from hypothesis import strategies as st

REFUSED = "refused"


def read_or_refused(read, path):
    """What `read` gives, or REFUSED if it raises an error that names the file."""
    errors = (ValueError, TypeError) if path.suffix == ".parquet" else ValueError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(path)
    except errors as error:
        message = str(error)
    assert str(path) in message
    assert len(message) < 2000
    return REFUSED


@st.composite
def damages(draw):
    """A function that flips bits, cuts, or puts bytes into bytes."""
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "cut", "insert", "drop", "repeat"]),
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 7),
                st.one_of(
                    st.binary(max_size=3),
                    st.sampled_from([b'"', b",", b"\t", b"::", b"\n", b"_", b"\x1f", b"\0", b" "]),
                ),
            ),
            max_size=3,
        )
    )

    def damage(data):
        for what, where, bit, extra in edits:
            at = int(where * len(data))
            if what == "flip" and data:
                data = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            elif what == "cut":
                data = data[:at]
            elif what == "insert":
                data = data[:at] + extra + data[at:]
            elif what == "drop":
                data = data[:at] + data[at + bit + 1 :]
            elif what == "repeat":
                data = data[:at] + data[at // 2 : at] + data[at:]
        return data

    return damage
