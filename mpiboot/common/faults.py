"""The words for an error that nobody has foreseen. Every room may import this module; it imports only pathlib."""

from pathlib import Path

FRAMES_SHOWN = 6


def one_line(error: BaseException) -> str:
    """Return what an error is, and where it happened, the innermost function last."""
    places = []
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        path = Path(code.co_filename)
        places.append(f"{path.parent.name}/{path.name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    where = f" ({' > '.join(places[-FRAMES_SHOWN:])})" if places else ""
    return " ".join(f"{type(error).__name__}: {error}".split()) + where


def unexpected(error: BaseException) -> str:
    """Return one line about an error that should not happen: what it is, and where, the innermost function last."""
    return f"an error that should not happen; please report it: {one_line(error)}"
