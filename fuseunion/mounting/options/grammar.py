"""The grammar of an option string and of the paths in it.

It is parsed here and never by libfuse, whose own pass would remove a level of backslashes:

    string   = [word] ("," [word])*             empty words are normal: podman passes "workdir=W,,volatile"
    word     = NAME | NAME "=" value
    value    = bare | '"' quoted '"'            a quote opens directly after "=", and only if it is closed again;
                                                commas inside are literal: context="system_u:s0:c1,c2"
    escapes  = "\\:" "\\," "\\\\" '\\"'         the literal character; a backslash before anything else is itself,
                                                as in /home/DOMAIN\\user

`lowerdir` is split at unescaped colons first and unescaped afterwards, so that `\\:` is a colon in a path, as in the
kernel (fs/overlayfs/params.c) and in what buildah writes.
"""

import re


def unescape(text: str) -> str:
    """Resolve `\\:`, `\\,`, `\\\\` and `\\"`; any other backslash is an ordinary character."""
    return re.sub(r'\\([:,\\"])', r"\1", text) if "\\" in text else text


def escape(path: str) -> str:
    """Write a path so that it survives as one element of `lowerdir=`, in a command line that is shown to the user."""
    return re.sub(r'([:,\\"])', r"\\\1", path)


def split_unescaped(text: str, separator: str) -> list[str]:
    """Split at each `separator` that no backslash protects; the parts keep their escapes."""
    if "\\" not in text:
        return text.split(separator)
    parts, start, position = [], 0, 0
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        if text[position] == separator:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return parts


def split_words(text: str) -> list[tuple[str, str | None]]:
    """Split an option string into (name, raw value or None); raw values keep their escapes, quotes are removed."""
    words: list[tuple[str, str | None]] = []
    while text:
        quoted = re.match(r'([^=,\\"]+)="((?:[^"\\]|\\.)*)"(?:,|$)', text, re.DOTALL)
        if quoted:
            words.append((quoted[1], quoted[2]))
            text = text[quoted.end() :]
            continue
        word = split_unescaped(text, ",")[0]
        text = text[len(word) + 1 :]
        if word:
            name, equals, value = word.partition("=")
            words.append((name, value if equals else None))
    return words
