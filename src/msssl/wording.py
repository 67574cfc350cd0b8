"""Singular and plural in messages."""


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number with a noun in the singular or the plural; by default the plural is the singular with an s.

    >>> counted(1, "image"), counted(2, "image"), counted(1200, "image is", "images are")
    ('1 image', '2 images', '1200 images are')
    """
    return f"{n} {one if n == 1 else many or f'{one}s'}"
