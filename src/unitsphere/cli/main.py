"""`unitsphere VERB key=value …`: one module a verb, imported when it is called."""

import sys
from importlib import import_module

from unitsphere.errors import UsageError

VERBS = {
    "train": "train, choose by dev, score on test, save (the same as python train.py)",
    "evaluate": "score a run, a model folder or a hub model",
    "encode": "a corpus's vectors in Parquet files; goes on where it was cut",
    "index": "embed documents, and keep what finds them",
    "search": "ask an index: by vectors, with words, reranked",
    "migrate": "an index's vectors into another model's space, without embedding its documents again",
    "mine": "hard negatives for your pairs, and an estimate of how many are none",
    "split": "a validation and a test set out of your own pairs",
    "export": "a model in a form that others serve: ONNX, sentence-transformers, torch.export, TensorRT, Triton",
    "serve": "a model behind HTTP: /embed, /v1/embeddings, /rerank, with batching and a cache",
    "compress": "make a model smaller and faster, and measure what that costs",
    "bench": "how fast it is here, beside sentence-transformers or another way of doing it",
    "chain": "several runs in a row, each from the model before: domain adaptation",
    "plan": "what a command would run, how long it should take and in how much memory, from past runs",
    "sweep": "how far a sweep is",
    "wandb": "the commands of a Weights & Biases sweep file, expanded and run here",
    "table": "runs as a table: mean and spread over seeds, significance, and what is unequal among them",
    "compare": "two models query by query: significance, what is won and lost, and the worst regressions",
    "report": "a run or a sweep as one page: curves, scores, the space, worst errors",
    "study": "a question, its runs and its table: run what is missing, or check that they belong together",
    "push": "a run's model with its card, to a hub or a folder",
    "diff": "in what two runs differ",
    "reproduce": "run a saved configuration again and compare every number",
}


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {verb:<11}{what}" for verb, what in VERBS.items())
        print(f"unitsphere VERB key=value …\n\n{lines}\n\nunitsphere VERB --help says more.")  # noqa: T201
        sys.exit(0 if arguments else 2)
    verb = arguments[0]
    if verb not in VERBS:
        print(f"error: no verb {verb!r}; known: {', '.join(VERBS)}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    module, given = import_module(f"unitsphere.cli.{verb}"), arguments[1:]
    if hasattr(module, "USAGE") and (not given or {"-h", "--help"} & set(given)):  # those that take paths
        sys.stdout.write(module.USAGE)
        sys.exit(0 if given else 2)
    try:
        module.main(given)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
