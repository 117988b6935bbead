"""The one exception for mistakes that a user can mend: config, data, weights."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake outside the code, told in one sentence: what is wrong, where, and what to do.

    Scripts print it as `error: ...` without a traceback and exit with status 2.
    """
