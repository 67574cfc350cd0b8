"""The wording of messages."""


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number and what it counts, in the singular or the plural, which is the singular and an s by default.

    >>> counted(1, "image"), counted(2, "image"), counted(1200, "image is", "images are")
    ('1 image', '2 images', '1200 images are')
    """
    return f"{n} {one if n == 1 else many or f'{one}s'}"
