"""Install what would be published into environments of its own, and use it far from the checkout.

Run by ``make wheel-test``. Builds the sdist, the wheel, and a wheel from the sdist; both wheels must hold the same
files. The first goes with all it needs into a fresh virtual environment, where the console script, its configs, a
user's own Hydra application and a plain import must work from another folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USERS_APP = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(config):
    print(config.model.net, config.data.name)

main()
"""


def call(*command: str | Path, cwd: Path) -> str:
    print("+", *command, flush=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean, text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{done.stderr}\nexit status {done.returncode}")
    return done.stdout


def expect(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        sys.exit(f"{what}: expected {wanted!r}, found {found!r}")
    print(f"ok: {what}", flush=True)


def members(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        call(sys.executable, "-m", "build", "--wheel", "--outdir", work / "direct", ROOT, cwd=work)
        call(sys.executable, "-m", "build", "--sdist", "--outdir", work / "sdist", ROOT, cwd=work)
        (sdist,) = (work / "sdist").glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(work / "unpacked", filter="data")
        (unpacked,) = (work / "unpacked").iterdir()
        call(sys.executable, "-m", "build", "--wheel", "--outdir", work / "indirect", unpacked, cwd=work)
        (direct,) = (work / "direct").glob("*.whl")
        (indirect,) = (work / "indirect").glob("*.whl")
        expect(members(indirect), members(direct), "the sdist's wheel holds the same files")
        for wanted in (
            "lightning_gnnopt/analysis/reporting/page.html",
            "lightning_gnnopt/conf/train.yaml",
            "lightning_gnnopt/py.typed",
            "hydra_plugins/gnnopt_search_path.py",
        ):
            expect(wanted in members(direct), True, f"the wheel holds {wanted}")
        expect([n for n in members(direct) if n.startswith(("tests", "benchmarks"))], [], "the wheel holds no tests")

        venv.create(work / "venv", with_pip=True)
        python, scripts = work / "venv" / "bin" / "python", work / "venv" / "bin"
        pip = (python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
        call(*pip, "torch", cwd=work)
        call(*pip, direct, cwd=work)
        place = work / "elsewhere"
        place.mkdir()
        where = call(python, "-c", "import lightning_gnnopt as g; print(g.__file__)", cwd=place).strip()
        expect(Path(where).is_relative_to(work / "venv"), True, "the installed package is the one imported")
        out = call(scripts / "gnnopt-train", "experiment=digits", "trainer.fast_dev_run=true", cwd=place)
        expect("Test accuracy" in out, True, "gnnopt-train runs a recipe from another folder")
        options = ("max_steps=6", "sweeps.batch_sizes=null", "sweeps.full_batch=false", "hydra.run.dir=analysis")
        out = call(scripts / "gnnopt-analyze", *options, cwd=place)
        expect("Phases of a training step" in out, True, "gnnopt-analyze prints its report")
        page = (place / "analysis" / "report.html").read_text(encoding="utf-8")
        expect("lightning-gnnopt[plots]" in page, True, "without matplotlib the page says what is missing")
        (place / "app.py").write_text(USERS_APP)
        out = call(python, "app.py", "+model=gat", "+data=cora", "+seed=1", "+output_dir=out", cwd=place)
        expect(out.split(), ["gat", "cora"], "a user's own Hydra application takes our groups")
        call(*pip, "--force-reinstall", "--no-deps", indirect, cwd=work)
        out = call(scripts / "gnnopt-train", "--help", cwd=place)
        expect("Train a graph neural network" in out, True, "the sdist's wheel works as well")


if __name__ == "__main__":
    main()
