"""What a careless or hostile hand may type and write: strategies for command lines, and mutations of a run's YAML file."""

from __future__ import annotations

from dataclasses import asdict

from hypothesis import strategies as st

from tests.conftest import ROOT
from xcls.config.files import read_yaml
from xcls.config.schema import MODES, Config, flatten

GROUPS = {
    path.name: sorted(p.stem for p in path.glob("*.yaml"))
    for path in sorted((ROOT / "conf").iterdir())
    if path.is_dir()
}
KEYS = sorted(
    {
        *flatten(asdict(Config())),
        *(
            f"{group}.{key}"
            for group in ("attention", "position", "dataset")
            for option in GROUPS[group]
            for key in read_yaml(ROOT / "conf" / group / f"{option}.yaml")
        ),
    }
)
TYPED_MOST = [
    "exp",
    "seed",
    "seq_len",
    "mode",
    "pretrain",
    "checkpoint",
    "template",
    "sweep",
    "dataset.path",
    "dataset.text",
    "tokenizer.path",
    "attention._target_",
    "position._target_",
    "dataset.source._target_",
    "input",
    "output",
    "study",
    "claims",
]
HYDRA = [
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.output_subdir",
    "hydra.job.chdir",
    "hydra.job.name",
    "hydra.mode",
    "hydra.verbose",
    "hydra.searchpath",
    "hydra.callbacks.x._target_",
    "hydra.launcher._target_",
    "hydra.sweeper._target_",
    "hydra",
    "hydra.sweeper.max_batch_size",
    "hydra.sweeper.params.seed",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra/job_logging",
    "hydra/output",
]
NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "7",
    "16",
    "1000000",
    "1000000000000",
    "1" + "0" * 30,
    "-1" + "0" * 30,
    "2147483648",
    "1e400",
    "-inf",
    "inf",
    "nan",
    "1e-400",
    "0.1",
    "-0.5",
    ".5",
    "1e-3",
    "0x10",
    "1_000",
    "01",
    "9" * 5000,
]
PATHS = [
    "../../x",
    "/abs/x",
    "..",
    ".",
    "/",
    "~",
    "~nobody-of-this-name/x",
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
    "C:\\x",
    "rows.csv",
    "x" * 300,
    "x/" * 2000,
    "a b",
    "con",
    "BASE",
    "Base",
    ".hidden",
    "-x",
    "x.",
    "name/",
    "/root",
    "run.py",
    "conf",
    "pretrain/base",
    "finetune",
    "README.md",
]
WORDS = [
    "true",
    "null",
    "None",
    "''",
    '""',
    "~",
    "[]",
    "{}",
    "[1,2]",
    "[a,null,1.5]",
    "{a:1}",
    "{a:{b:{c:1}}}",
    "[" * 50 + "]" * 50,
    "[[[[",
    "}",
    "{",
    "'",
    '"',
    "'a b'",
    "a b",
    "a\tb",
    "a\nb",
    "a\\",
    "\\",
    "%s",
    "*",
    "?",
    "a;b",
    "$(touch x)",
    "`touch x`",
    "--",
    "=",
    "a=b",
    "a,b",
    ",",
    "1,2,",
    "\udcff",
    "é",
    "名前",
    "🙂",
    "\u202e",
    "\x1b[31m",
    "<script>",
    "a:b",
    "a@b",
    "+",
    "#",
    "choice(1,2)",
    "range(3)",
    "range(0,1,0)",
    "interval(0,1)",
    "range(0,1000000000)",
    "range(0,1,0.00000001)",
    "glob(*)",
    "shuffle(1,2)",
    "sort(3,1)",
    "int(x)",
    "str([)",
    "float(nan)",
    "json_str({a:1})",
]
INTERPOLATIONS = [
    "${seed}",
    "${nope}",
    "${",
    "$",
    "\\${seed}",
    "${oc.env:HOME}",
    "${oc.env:NOT_SET}",
    "${oc.env:NOT_SET,x}",
    "${oc.decode:'['}",
    "${now:%Y}",
    "${hydra:runtime.cwd}",
    "${hydra:nope}",
    "${nope:1}",
    "${size}",
    "${size.width}${seed}",
    "${.seed}",
    "${..}",
    "${oc.create:{a:1}}",
    "${exp}",
]
TARGETS = [
    "os.system",
    "builtins.eval",
    "subprocess.run",
    "shutil.rmtree",
    "xcls.stages.training.train",
    "xcls.data.cache.build_once",
    "xcls.attention.softmax",
    "xcls.attention.softmax.Nope",
    "xcls.attention.nope.Nope",
    "xcls.attention..softmax",
    "xcls.position.rope.Rotary",
    "xcls.attention.softmax.Sdpa",
    "xcls.attention.base.torch",
    "xcls.data.hub.load_hub",
    "{_target_:os.system,command:'touch owned'}",
    "[{_target_:os.system,command:'touch owned'}]",
]

values = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(PATHS),
    st.sampled_from(WORDS),
    st.sampled_from(INTERPOLATIONS),
    st.sampled_from(TARGETS),
    st.text(st.characters(exclude_characters="\0"), max_size=12),
    st.tuples(st.sampled_from(WORDS), st.sampled_from(NUMBERS + WORDS)).map(",".join),
)
settings_ = st.one_of(
    st.builds("{}={}".format, st.sampled_from(KEYS), values),
    st.builds("{}={}".format, st.sampled_from(TYPED_MOST), values),
    st.builds("{}={}".format, st.sampled_from(TYPED_MOST), values),
    st.sampled_from(sorted(GROUPS)).flatmap(
        lambda group: st.sampled_from(GROUPS[group] or ["x"]).map(lambda option: f"{group}={option}")
    ),
    st.builds("{}={}".format, st.sampled_from(sorted(GROUPS)), values),
    st.builds(
        "{}{}={}".format, st.sampled_from(["+", "++", "~", "+~", " ", "/", "@"]), st.sampled_from(KEYS + HYDRA), values
    ),
    st.builds("~{}".format, st.sampled_from(KEYS + sorted(GROUPS))),
    st.builds("{}={}".format, st.sampled_from(HYDRA), values),
    st.builds(
        "{}@{}={}".format, st.sampled_from(sorted(GROUPS)), st.sampled_from(["x", "_global_", "hydra", "size"]), values
    ),
    st.builds("{}={}".format, st.text(st.characters(exclude_characters="\0"), max_size=8), values),
    st.builds("mode={}".format, st.sampled_from(MODES)),
    values,
)
GOOD = [
    "seed=1,2",
    "seed=3",
    "seq_len=24",
    "exp=a",
    "exp=Base",
    "exp=base",
    "exp=5",
    "exp=1e3",
    "resume=true",
    "attention=performer",
    "position=none",
    "size=mini",
    "size.width=16",
    "size.num_heads=4",
    "head.num_classes=2",
    "dataset.limit=30",
    "dataset.leak=drop",
    "dataset.extra=[rows.csv]",
    "tokenizer=bytes",
    "hardware=cpu",
    "finetuning.max_steps=2",
    "finetuning.lr=1e-3",
    "pretrain=base",
    "pretrain=auto",
    "checkpoint=last",
    "checkpoint=nope.pt",
    "input=rows.csv",
    "output=out.csv",
    "split=validation",
    "claims.WNF-1.x=1",
    "study=t",
    "template=pretrain/written/config.yaml",
    "exp=written",
    "experiment=quick",
    "sweep=s",
    "bench.seconds=1",
    "masking.probability=0.2",
]
OPTIONS = [
    "-m",
    "--multirun",
    "--cfg",
    "job",
    "--info",
    "--resolve",
    "-c",
    "--config-name",
    "--config-dir",
    "--package",
    "-h",
    "--zz",
    "-",
    "--",
]
BASE = ["dataset=files", "dataset.path=rows.csv", "wandb=disabled"]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """One to four words, most often with a data set that exists, sometimes with one of Hydra's options or as a sweep."""
    words = draw(st.lists(st.sampled_from(GOOD), max_size=3, unique_by=lambda word: word.partition("=")[0]))
    words += draw(st.lists(settings_, min_size=int(not words), max_size=draw(st.sampled_from([1, 1, 1, 3]))))
    words = draw(st.permutations(words))
    if draw(st.integers(0, 9)):
        words = [f"mode={draw(st.sampled_from(MODES))}", *BASE, *words] if draw(st.booleans()) else [*BASE, *words]
    if not draw(st.integers(0, 5)):
        words.insert(0, "-m")
    elif not draw(st.integers(0, 7)):
        words.insert(draw(st.integers(0, len(words))), draw(st.sampled_from(OPTIONS)))
    return words


YAML = [
    "[1, 2",
    "{a: ",
    "'",
    '"',
    "&a [1]",
    "*a",
    "&a {b: *a}",
    "!!python/object:os.system x",
    "!!int x",
    "!!timestamp x",
    "!!binary x",
    "!!set {a}",
    "? a",
    "- a",
    "|",
    ">",
    "%YAML 9.9",
    "---",
    "...",
    "\t",
    "@",
    "`",
    "2024-01-01",
    "1:30",
    "0o7",
    "yes",
    ".nan",
    ".inf",
    "[" * 3000,
    "{a: " * 3000,
    '"\\0"',
    '"\\ud800"',
    "a: b: c",
    ": ",
    "#",
    "<<: *a",
    "[[a, b], {c: d}]",
    "{_target_: os.system, command: touch owned}",
    "9" * 5000,
    "\ufeff",
    "\x85",
    "\x0c",
    "x" * 100_000,
]
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
yaml_values = st.one_of(st.sampled_from(YAML), values, st.text(max_size=12))


@st.composite
def mutations(draw: st.DrawFn, text: str) -> bytes:
    """The YAML file `text` after one to three accidents."""
    lines = text.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        key = lines[place].partition(":")[0]
        kind = draw(st.integers(0, 11))
        if kind <= 4:
            lines[place] = f"{key}: {draw(yaml_values)}"
        elif kind == 5:
            lines[place] = (
                f"{draw(st.sampled_from(KEYS + ['choices', 'choices.attention', 'choices.dataset', 'resolved', 'x', '', 'a.b.c', '.', 'size']))}: {draw(yaml_values)}"
            )
        elif kind == 6:
            lines[place] = draw(st.sampled_from(["  ", "\t", " - ", "- "])) + lines[place]
        elif kind == 7:
            lines.insert(place, lines[draw(st.integers(0, len(lines) - 1))])
        elif kind == 8:
            lines.insert(place, draw(st.sampled_from([*YAML, BOMB])))
        elif kind == 9:
            lines[place] = f"choices.{draw(st.sampled_from(sorted(GROUPS)))}: {draw(yaml_values)}"
        elif kind == 10 and "." in key:
            head, _, tail = key.partition(".")
            lines[place] = f"{head}: {{{tail}: {draw(yaml_values)}}}"
        else:
            del lines[place]
            lines = lines or [""]
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    if not draw(st.integers(0, 7)):
        cut = draw(st.integers(0, len(raw)))
        raw = (
            raw[:cut]
            + draw(st.sampled_from([b"", b"\0", b"\xff\xfe", b"\x80", b"\r", b"PK\x03\x04", bytes(range(256))]))
            + raw[cut + draw(st.integers(0, 9)) :]
        )
    return raw
