# Python runs this file when it starts, in the children of `asyncsafe run`: its folder stands first
# on their PYTHONPATH. It may be run by any Python, with asyncsafe installed or not, so it is
# written for all of them, and a program never fails for it.
import os
import sys


def let_the_own_one_run():  # type: () -> None
    """Import the sitecustomize that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    ours = sys.modules.pop("sitecustomize", None)
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    try:
        import sitecustomize  # noqa: F401
    except ImportError as error:
        if getattr(error, "name", None) != "sitecustomize":
            raise
    finally:
        # The import of this file, which is under way, looks for its module when it ends.
        sys.modules.setdefault("sitecustomize", ours)


def follow():  # type: () -> None
    try:
        from asyncsafe.following import follow

        follow()
    except ImportError:
        return  # a Python without asyncsafe
    except Exception:
        sys.stderr.write(f"asyncsafe: this process is not guarded: {sys.exc_info()[1]}\n")


try:
    follow()
finally:
    let_the_own_one_run()
