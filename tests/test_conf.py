"""Every option of every group composes, is described, and fits the signature that it names."""

import inspect
import subprocess
import sys

import pytest
import pytorch_lightning as pl
from hydra.utils import get_class, get_object
from omegaconf import DictConfig, OmegaConf

from conftest import command, composed
from unitsphere import paths
from unitsphere.build import build
from unitsphere.cli.chain import verb
from unitsphere.cli.help import first_comment, page
from unitsphere.compression.step import check_chain
from unitsphere.errors import UsageError

CHAINS = sorted((paths.conf() / "chain").glob("*.yaml"))
OPTIONS = sorted(f for f in paths.conf().glob("*/*.yaml") if f not in CHAINS)  # not those of Hydra's own groups
GIVEN_BY_CODE = {
    "pooling": {"dim"}, "embedder": {"encoder", "pooling"}, "logger": {"save_dir"}, "eval": {"split", "own"},
    "window": {"encoder", "dim"}, "hybrid": {"rankings", "k"}, "alignment": {"old", "new"},
}  # fmt: skip
PATH = "loss.teacher.path=x"
OF_INDEX = ["from=x", "model=x", "out=x"]
OF_ENCODE = ["corpus=x", "model=x", "out=x"]
ROOTS = {
    "source": "mine",
    "filter": "mine",
    "index": "mine",
    "hybrid": "search",
    "workers": "encode",
    "alignment": "migrate",
    "to": "export",
    "ladder": "compress",
    "calibration": "compress",
    "bench": "bench",
}  # of the groups that train.yaml does not have
PLACES = {  # of the groups that are part of an option of another
    "index": "index@source.dense.index",
    "calibration": "calibration@compression.int8_static.calibration",
}
MUST_BE_GIVEN = {
    "loss/distil_mse": [PATH], "loss/distil_cosine": [PATH], "loss/distil_relational": [PATH], "loss/margin_mse": [PATH],
    "filter/cross_encoder": ["filter.cross_encoder.scorer.path=x"], "loss/distil_multilingual": [PATH],
    "loss/distil_features": ["loss.terms.features.teacher.path=x"],
    "workers/local": OF_ENCODE, "workers/ray": OF_ENCODE,
    "alignment/procrustes": OF_INDEX, "alignment/least_squares": OF_INDEX, "hybrid/rrf": ["in=x"], "hybrid/weighted": ["in=x"],
    "eval/bad_cases": ["eval.bad_cases.path=x"], "preparation/mined": ["preparation.mined.path=x"],
}  # fmt: skip
OF_MODEL = {"to": [], "ladder": [], "calibration": ["compression=int8_static"]}
for option in OPTIONS:
    if option.parent.name in OF_MODEL:
        MUST_BE_GIVEN[f"{option.parent.name}/{option.stem}"] = ["model=x", *OF_MODEL[option.parent.name]]
GROUPS = {f.parent.name for f in OPTIONS}


def nodes(config):
    """The nodes of a composed config that name a target, at any depth, with their group."""

    def below(group, node):
        if isinstance(node, DictConfig):
            if "_target_" in node:
                yield group, node
            for key, child in node.items():
                yield from below(f"{group}.{key}" if "_target_" in node else group, child)

    for group in GROUPS & set(config):
        yield from below(group, config[group])


@pytest.mark.parametrize("option", OPTIONS, ids=lambda f: f"{f.parent.name}/{f.stem}")
def test_an_option_composes_and_fits_its_signature(option):
    group = option.parent.name
    chosen, given = f"{PLACES.get(group, group)}={option.stem}", MUST_BE_GIVEN.get(f"{group}/{option.stem}", ())
    config = composed(chosen, *given, root=ROOTS.get(group, "train"))
    assert first_comment(option)
    for of, node in nodes(config):
        target = get_object(node._target_)
        keys = {k for k in node if not k.startswith("_")} | GIVEN_BY_CODE.get(of, set())
        parameters = inspect.signature(target).parameters
        if of == "trainer":  # whose own keyword arguments are Lightning's
            keys = {k for k in keys if k not in parameters}
            parameters = inspect.signature(pl.Trainer).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        assert takes_any or keys <= set(parameters), f"{node._target_}: {keys - set(parameters)}"
        if node.get("_partial_"):
            keys |= set(parameters)
        required = {n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        assert required <= keys, f"{node._target_}: {required - keys} missing"


@pytest.mark.parametrize("chain", CHAINS, ids=lambda f: f.stem)
def test_every_stage_of_a_chain_composes(chain):
    assert first_comment(chain)
    stages = OmegaConf.to_container(OmegaConf.load(chain))["stages"]
    for overrides in stages.values():
        for earlier in stages:
            overrides = [o.replace(f"{{{earlier}}}", "/somewhere") for o in overrides]
        root = verb(overrides)
        config = composed(*overrides[root != "train" :], *(["name=x"] if root != "train" else []), root=root)
        assert "{" not in str(OmegaConf.to_container(config).get("encoder", {}).get("path") or "")


@pytest.mark.parametrize("ladder", sorted((paths.conf() / "ladder").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_rung_of_a_ladder_composes_to_a_chain_that_may_be(ladder):
    for rung, overrides in OmegaConf.load(ladder).items():
        config = composed("model=x", *overrides, root="compress")
        chain = {name: get_class(node._target_) for name, node in config.compression.items()}
        check_chain(chain)
        assert chain and "/" not in rung


@pytest.mark.parametrize("bench", sorted((paths.conf() / "bench").glob("*.yaml")), ids=lambda f: f.stem)
def test_what_a_bench_calls_takes_its_options_and_its_root_composes(bench):
    config = OmegaConf.load(bench)
    for call in (config.call, *config.peers.values()):
        inspect.signature(get_object(call)).bind("config", **config.options)
    composed(*config.fixed, f"{config.threads}=1", root=config.root)


def test_every_option_names_a_different_thing():
    texts = [f.read_text() for f in OPTIONS]
    assert len(set(texts)) == len(texts)


def test_decoders_pool_the_last_token_unless_told_otherwise():
    assert composed("encoder=smollm2").pooling._target_.endswith("LastTokenPooling")
    assert composed("encoder=smollm2", "pooling=mean").pooling._target_.endswith("MeanPooling")


def test_e5_brings_its_prompts():
    assert composed("encoder=e5_base").embedder.prompts == {"query": "query: ", "document": "passage: "}
    assert composed("encoder=e5_base", "embedder.prompts.query=''").embedder.prompts.query == ""


def test_an_experiment_wins_over_defaults_and_loses_to_the_command_line(tmp_path):
    config = composed("experiment=simcse_bert_unsup")
    assert config.data.batch_size == 64 and config.trainer.max_epochs == 1 and config.pooling.train_only
    assert composed("experiment=simcse_bert_unsup", "data.batch_size=8").data.batch_size == 8


def test_the_control_of_the_matryoshka_experiment_composes_and_builds():
    given = ["experiment=matryoshka_mpnet", "data.path=x.csv", "loss=infonce", "~loss.dims"]
    assert type(build(composed(*given).loss)).__name__ == "InfoNCE"


def test_a_key_that_nothing_takes_is_named():
    with pytest.raises(UsageError, match=r"SimCSE: got an unexpected keyword argument 'foo'; it takes temperature, "):
        build(composed("loss=simcse", "+loss.foo=1").loss)


def test_help_names_every_group_option_and_key():
    text = page("train")
    for option in OPTIONS:
        group = option.parent.name
        lead = "" if group in PLACES else "    "  # such a group is named in the text above the groups
        assert f"{lead}{option.stem}" in page(ROOTS.get(group, "train")), option
    config = OmegaConf.load(paths.conf() / "train.yaml")
    for key in set(config) - {"defaults", "hydra"}:
        assert f"  {key}=" in text
    assert text.count("  python train.py") >= 5


@pytest.mark.parametrize("arguments", [["--cfg", "job", "loss=simcse"], ["--help"]])
def test_answers_without_importing_torch(arguments):
    code = (
        "import sys; from unitsphere.cli.train import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "loss" in done.stdout, done.stderr


@pytest.mark.parametrize("verb", ["evaluate eval=none", "encode corpus=a.txt out=b", "serve", "export to=onnx out=b"])
def test_verbs_that_do_not_train_do_not_load_lightning(verb, tmp_path):
    """Which takes seconds. Without a model they end when what loads one is imported."""
    (tmp_path / "a.txt").write_text("a line\n")
    code = (
        f"import sys; sys.argv = {['unitsphere', *verb.split(), 'model=nowhere']!r}\n"
        "from unitsphere.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as ended: sys.exit(3 if 'pytorch_lightning' in sys.modules else ended.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and ("nowhere" in done.stderr or "eval is empty" in done.stderr), done.stderr


@pytest.mark.slow
def test_somebody_elses_loss_needs_no_change_here(tmp_path, pairs):
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss" / "mine.yaml").write_text("_target_: mine.Mine\nscale: 3.0\n")
    (tmp_path / "mine.py").write_text(
        "from unitsphere.losses.base import Loss\nfrom unitsphere.types import LossOutput\n"
        "class Mine(Loss):\n"
        "    def __init__(self, scale):\n        super().__init__()\n        self.scale = scale\n"
        "    def forward(self, e):\n        return LossOutput(self.scale * (e.anchors[0] - e.positives).square().mean())\n"
    )
    done = command(
        "train", "-cd", tmp_path, "loss=mine", "encoder=tiny", "data=pairs", f"data.path={pairs}", "data.batch_size=8",
        "trainer.max_steps=2", f"outputs={tmp_path}/out", cwd=tmp_path,
    )  # fmt: skip
    assert "mine-mean" in done.stdout


@pytest.mark.parametrize("sweep", sorted((paths.conf().parent / "sweeps").glob("*.yaml")), ids=lambda f: f.stem)
def test_a_sweep_composes(sweep):
    assert first_comment(sweep)
    done = command("train", "-cd", sweep.parent, "-cn", sweep.stem, "--cfg", "job")
    assert "_target_" in done.stdout
