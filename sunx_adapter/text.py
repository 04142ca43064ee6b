"""Text that may come from others, made printable."""


def printable(text: str) -> str:
    """The text without line breaks and control characters, which would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " for letter in text)
