"""`unitsphere push RUN to=…`: a run's model with its card, to a hub or to a folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from unitsphere.errors import UsageError
from unitsphere.runs import Run, write

USAGE = """unitsphere push RUN to=OWNER/NAME [private=false] [license=apache-2.0] [revision=main]
unitsphere push RUN to=./FOLDER

Writes the model's card anew under its public name and uploads RUN/model: weights, tokenizer, pooling and prompts, the
files of sentence-transformers, README.md. A repository that is made for it is private unless private=false. The token
is the one of `hf auth login` or HF_TOKEN. A target that begins with . / or ~ is a folder, which must not exist yet.

  unitsphere push outputs/simcse-mean/s1_20261124-212000 to=me/minilm-docstrings
  unitsphere push outputs/simcse-mean/s1_20261124-212000 to=./served/minilm-docstrings
"""
OPTIONS = ("to", "private", "license", "revision")


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    from unitsphere.report.table import show

    paths = [a for a in arguments if "=" not in a]
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    unknown = [key for key in given if key not in OPTIONS]
    if unknown or len(paths) != 1 or "to" not in given:
        raise UsageError(f"push: {' '.join(unknown) or ' '.join(arguments)}: RUN to=…, and {', '.join(OPTIONS)} fit.")
    if given.get("private", "true") not in ("true", "false"):
        raise UsageError(f"private={given['private']}: true or false would fit.")
    run, target = Run.open(paths[0]), given["to"]
    if not (run.folder / "model" / "config.json").exists() or "choices" not in run.info:
        raise UsageError(f"{run.folder}: no model/ is there to push (this run is {run.info['status']}).")
    licence = {"license": given["license"]} if "license" in given else {}
    if target.startswith((".", "/", "~")):
        show(str(to_folder(run, Path(target).expanduser(), **licence)))
    else:
        show(to_hub(run, target, given.get("private", "true") == "true", given.get("revision"), **licence))


def to_folder(run: Run, folder: Path, **metadata: str) -> Path:
    """Copy the model with its card; the folder appears whole or not at all.

    Raises:
        UsageError: The folder is there already.
    """
    from unitsphere.card import card

    if folder.exists():
        raise UsageError(f"to={folder} is there already; name one that is not.")
    part = folder.with_name(folder.name + ".writing")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(run.folder / "model", part)
    write(part / "README.md", card(run, folder.name, str(folder), **metadata))
    part.rename(folder)
    return folder


def to_hub(run: Run, name: str, private: bool, revision: str | None = None, **metadata: str) -> str:
    """Upload the model with its card in one commit, and return its address.

    Args:
        name: owner/name, or name under the account of the token.
        private: Of a repository that is made for it; one that exists keeps what it is.
        revision: A branch; made where it is not there.

    Raises:
        UsageError: The hub refuses: no token, no right, a wrong name, no network.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from unitsphere.card import card

    api = HfApi()
    try:
        repo = api.create_repo(name, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        model = run.folder / "model"
        files = [f for f in sorted(model.rglob("*")) if f.is_file() and f != model / "README.md"]
        text = card(run, repo, **metadata).encode()
        adds = [CommitOperationAdd(str(f.relative_to(model)), str(f)) for f in files]
        done = api.create_commit(
            repo,
            [*adds, CommitOperationAdd("README.md", text)],
            commit_message=f"{run.info['name']}, seed {run.info['seed']}",
            revision=revision,
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UsageError(f"to={name}: {' '.join(str(error).split())}") from error
    return str(done.commit_url)
