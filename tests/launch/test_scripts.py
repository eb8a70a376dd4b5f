"""The launchers, with stand-ins for gcloud, xpk, kubectl and srun on PATH that record how they were called and answer as told."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
# What a stand-in answers is a piece of shell, in which `count PATTERN` says how many calls so far, itself among them, match.
STAND_IN = r"""#!/bin/bash
{ printf '%s\x1f' "$(basename "$0")" "$@"; printf '\x1e'; } >>"$CALLS"
count() { tr '\036\n\037' '\n  ' <"$CALLS" | grep -c -- "$1"; }
source "$ANSWERS"
"""
PROGRAM = ("--config", "configs/smoke.py", "--workdir", "{workdir}", '--config.subject.class_noun=it\'s "my" $HOME\\dog; *')
TPU_VM = ("tpu_vm.sh", "--type", "v6e-8", "--zone", "us-east5-a")
COMPUTE_ENGINE = ("tpu_compute_engine.sh", "--type", "v6e-8", "--zone", "us-east5-a")
GKE = ("gke.sh", "--type", "v6e-4", "--zone", "us-east5-a", "--cluster", "my-cluster")


class Launcher:
    """Runs launchers in a folder of their own; `calls` holds what the last one called."""

    def __init__(self, folder: Path):
        self.folder, self.bin, self.calls = folder, folder / "bin", []
        self.bin.mkdir()
        for name in ("gcloud", "xpk", "kubectl", "srun", "sbatch", "tar"):
            self.stand_in(name)
        self.environment = dict(os.environ, PATH=f"{self.bin}:{os.environ['PATH']}", HOME=str(folder), TMPDIR=str(folder), POLL_SECONDS="0")
        self.environment.update(CALLS=str(folder / "calls"), ANSWERS=str(folder / "answers"))
        for name in ("HF_HOME", "HF_TOKEN_PATH", "SLURM_SUBMIT_DIR", "SLURM_JOB_NUM_NODES", "PYTHON"):
            self.environment.pop(name, None)

    def stand_in(self, name: str) -> None:
        (self.bin / name).write_text(STAND_IN)
        (self.bin / name).chmod(0o755)

    def run(self, script, *options, answers="", workdir="gs://bucket/dog", stdin=subprocess.DEVNULL, program=PROGRAM, **variables):
        (self.folder / "answers").write_text(answers)
        (self.folder / "calls").write_text("")
        self.workdir = workdir
        command = ["/bin/bash", str(script if isinstance(script, Path) else LAUNCH / script), *options]
        command += [argument.format(workdir=workdir) for argument in program]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | variables, stdin=stdin, capture_output=True, text=True, timeout=20, check=False
        )
        self.calls = [call.split("\x1f")[:-1] for call in (self.folder / "calls").read_text().split("\x1e")[:-1]]
        return done

    def kinds(self) -> list[str]:
        """The verbs of the calls that were made, e.g. "create"; what was asked of the workers for ssh."""
        verbs = ("create", "describe", "delete", "scp", "ssh", "wait", "logs", "list")
        kinds = []
        for call in self.calls:
            verb = next((verb for verb in verbs if verb in call), call[0])
            kinds.append(option(call, "command").split()[0] if verb == "ssh" else verb)
        return kinds

    def named(self, verb: str) -> list[list[str]]:
        return [call for call in self.calls if verb in call]

    def program_arguments(self, command: str) -> list[str]:
        """What a worker's shell makes of a command for the program."""
        self.stand_in("bash")
        (self.folder / "calls").write_text("")
        subprocess.run(["/bin/bash", "-c", command], env=self.environment, check=True)
        (call,) = (self.folder / "calls").read_text().split("\x1e")[:-1]
        (self.bin / "bash").unlink()
        return call.split("\x1f")[1:-1]

    def expected(self) -> list[str]:
        return [argument.format(workdir=self.workdir) for argument in PROGRAM]


def option(call: list[str], name: str) -> str:
    (value,) = (argument.split("=", 1)[1] for argument in call if argument.startswith(f"--{name}="))
    return value


@pytest.fixture
def launcher(tmp_path):
    return Launcher(tmp_path)


def machine(states: str, program: str = ":") -> str:
    """Answers of a machine: what describe says, as cases of the number of creations so far, and what the program does."""
    return f"""case " $* " in
  *" describe "*) case $(count " create ") in {states} esac ;;
  *detached.sh*) {program} ;;
esac"""


APPEARS = machine('0) echo not found >&2; exit 1 ;; *) echo "$READY" ;;')
CLOUDS = pytest.mark.parametrize(("start", "ready", "gone"), [(TPU_VM, "ACTIVE", "SUSPENDED"), (COMPUTE_ENGINE, "RUNNING", "TERMINATED")])
PREPARED = ["tar", "mkdir", "scp", "tar"]


@CLOUDS
def test_whole_run(launcher, start, ready, gone):
    done = launcher.run(*start, "--delete", "--", answers=APPEARS, READY=ready)
    assert done.returncode == 0, done.stderr
    assert launcher.kinds() == ["describe", "create", "describe", *PREPARED, "bash", "delete"]
    detached, bash, worker, extra, *program = launcher.program_arguments(option(launcher.named("ssh")[-1], "command"))
    assert [detached, bash, worker, extra] == ["proxy_jax/launch/detached.sh", "bash", "proxy_jax/launch/worker.sh", "tpu,gs"]
    assert program == launcher.expected()
    for call in launcher.named("ssh") + launcher.named("create"):
        assert "--zone=us-east5-a" in call and "--project=p" not in call
    assert ("--worker=all" in launcher.named("ssh")[-1]) == (start is TPU_VM)
    assert "note:" not in done.stderr


@CLOUDS
def test_local_workdir_is_fetched_also_after_a_failure(launcher, start, ready, gone):
    launcher.stand_in("mkdir")
    answers = machine('0) exit 1 ;; *) echo "$READY" ;;', program="exit 3")
    done = launcher.run(*start, "--delete", "--project", "p", "--", answers=answers, workdir="my runs/dog", READY=ready)
    assert done.returncode == 1 and "the program failed" in done.stderr
    assert launcher.kinds()[-4:] == ["describe", "mkdir", "scp", "delete"]
    assert launcher.named("scp")[-1][-6 if start is TPU_VM else -5 :][:2] == ["proxy-jax:proxy_jax/my runs/dog", "my runs"]
    assert "--recurse" in launcher.named("scp")[-1]
    assert all("--project=p" in call for call in launcher.calls if call[0] == "gcloud")


@CLOUDS
def test_a_workdir_that_cannot_be_fetched_keeps_the_machine(launcher, start, ready, gone):
    answers = APPEARS + '\ncase " $* " in *" --recurse "*) exit 1 ;; esac'
    done = launcher.run(*start, "--delete", "--", answers=answers, workdir=str(launcher.folder / "out" / "dog"), READY=ready)
    assert done.returncode == 1 and "is kept" in done.stderr
    assert not launcher.named("delete")
    assert f"proxy-jax:{launcher.folder}/out/dog" in launcher.calls[-1]


@CLOUDS
def test_runs_again_after_preemption(launcher, start, ready, gone):
    states = '0) exit 1 ;; 1) if [ "$(count detached.sh)" = 0 ]; then echo "$READY"; else echo "$GONE"; fi ;; *) echo "$READY" ;;'
    answers = machine(states, program='[ "$(count " create ")" != 1 ] || exit 255')
    done = launcher.run(*start, "--spot", "--delete", "--", answers=answers, READY=ready, GONE=gone)
    assert done.returncode == 0, done.stderr
    attempt = ["create", "describe", *PREPARED, "bash"]
    assert launcher.kinds() == ["describe", *attempt, "describe", "describe", "delete", *attempt, "delete"]
    for call in launcher.named("create"):
        assert ("--spot" if start is TPU_VM else "--provisioning-model=SPOT") in call
    answers = machine('0) exit 1 ;; *) echo "$READY" ;;', program='[ "$(count detached.sh)" != 1 ] || exit 75')
    done = launcher.run(*start, "--spot", "--delete", "--", answers=answers, READY=ready)
    assert done.returncode == 0 and "preempted; the program is run again" in done.stderr, "saved, and the machine still stands"
    assert launcher.kinds()[-4:] == ["bash", "describe", "bash", "delete"]


@CLOUDS
def test_a_lost_connection_is_taken_up_again(launcher, start, ready, gone):
    answers = machine('0) exit 1 ;; *) echo "$READY" ;;', program='[ "$(count detached.sh)" = 3 ] || exit 1')
    done = launcher.run(*start, "--delete", "--", answers=answers, READY=ready)
    assert done.returncode == 0, done.stderr
    assert launcher.kinds() == ["describe", "create", "describe", *PREPARED, "bash", "describe", "bash", "describe", "bash", "delete"]
    answers = machine('0) exit 1 ;; *) echo "$READY" ;;', program="exit 1")
    done = launcher.run(*start, "--delete", "--", answers=answers, READY=ready)
    assert done.returncode == 1 and "lost the connection 20 times" in done.stderr and launcher.kinds()[-1] == "delete"


def test_waits_in_the_queue_and_for_ssh(launcher):
    answers = """case " $* " in
  *" describe "*) case $(count " describe ") in 1) exit 1 ;; 2) echo WAITING_FOR_RESOURCES ;; 3) echo PROVISIONING ;; *) echo ACTIVE ;; esac ;;
  *mkdir*) [ "$(count mkdir)" = 3 ] || exit 255 ;;
esac"""
    done = launcher.run(*TPU_VM, "--reserved", "--delete", "--", answers=answers)
    assert done.returncode == 0, done.stderr
    assert launcher.kinds() == ["describe", "create", *["describe"] * 3, "tar", *["mkdir"] * 3, "scp", "tar", "bash", "delete"]
    assert "--reserved" in launcher.named("create")[0]
    done = launcher.run(*TPU_VM, "--delete", "--", answers=answers.replace("count mkdir", "echo 0"))
    assert done.returncode == 1 and "does not answer" in done.stderr and launcher.kinds()[-2:] == ["mkdir", "delete"]


def test_a_refused_request_is_deleted(launcher):
    done = launcher.run(*TPU_VM, "--delete", "--", answers=APPEARS, READY="FAILED")
    assert done.returncode == 1 and "could not be made: it is FAILED" in done.stderr
    assert launcher.kinds() == ["describe", "create", "describe", "delete"]
    done = launcher.run(*TPU_VM, "--delete", "--", answers='case " $* " in *" describe "*|*" create "*) exit 1 ;; esac')
    assert done.returncode == 1 and launcher.kinds() == ["describe", "create"], "nothing to delete"


def test_goes_on_with_a_machine_that_is_there_and_keeps_it(launcher):
    token = launcher.folder / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_secret")
    done = launcher.run(*TPU_VM, "--keep", "--", answers="case $* in *describe*) echo ACTIVE ;; esac")
    assert done.returncode == 0 and "is kept and costs money" in done.stderr
    assert launcher.kinds() == ["describe", "tar", "mkdir", "scp", "scp", "tar", "bash"]
    assert "proxy-jax:.cache/huggingface/token" in launcher.named("scp")[1]
    assert "hf_secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("interrupted", ["create", "detached.sh"])
@CLOUDS
def test_deletes_when_interrupted(launcher, start, ready, gone, interrupted):
    """Also where gcloud catches the signal, as it does Ctrl-C, and exits as after a failure."""
    (launcher.folder / "answers").write_text(
        APPEARS
        + f"""
case " $* " in *{interrupted}*) trap "exit 1" TERM; touch "$HOME/reached"; for i in {{1..200}}; do sleep 0.1; done ;; esac"""
    )
    command = ["/bin/bash", str(LAUNCH / start[0]), *start[1:], "--delete", "--", "--config", "c", "--workdir", "gs://bucket/dog"]
    running = subprocess.Popen(command, env=launcher.environment | {"READY": ready}, start_new_session=True, stdout=subprocess.DEVNULL)
    while running.poll() is None and not (launcher.folder / "reached").exists():
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(timeout=20) == 130
    assert " delete " in (launcher.folder / "calls").read_text().rsplit("\x1e", 2)[1].replace("\x1f", " ")


@pytest.mark.parametrize(("answer", "deletes"), [("\n", True), ("y\n", True), ("n\n", False), ("\x04", False)])
def test_asks_before_deletion(launcher, answer, deletes):
    keyboard, terminal = pty.openpty()
    os.write(keyboard, answer.encode())
    done = launcher.run(*TPU_VM, "--", answers="case $* in *describe*) echo ACTIVE ;; esac", stdin=terminal)
    os.close(keyboard), os.close(terminal)
    assert "Delete proxy-jax? It costs money" in done.stderr
    assert bool(launcher.named("delete")) == deletes


def test_nobody_to_ask(launcher):
    for start in (TPU_VM, COMPUTE_ENGINE, GKE):
        done = launcher.run(*start, "--", workdir="/data/dog")
        assert done.returncode == 1 and "give --delete or --keep" in done.stderr and not launcher.calls


# TYPE: accelerator type and runtime version of the Cloud TPU API, machine type of Compute Engine, hosts. From the pages in launch/README.md.
TPUS = {
    "v4-8": ("v4-8", "tpu-ubuntu2204-base", None, 1),
    "v4-32": ("v4-32", "tpu-ubuntu2204-base", None, 4),
    "v5e-1": ("v5litepod-1", "v2-alpha-tpuv5-lite", None, 1),
    "v5litepod-8": ("v5litepod-8", "v2-alpha-tpuv5-lite", None, 1),
    "v5e-16": ("v5litepod-16", "v2-alpha-tpuv5-lite", None, 4),
    "v5p-8": ("v5p-8", "v2-alpha-tpuv5", "ct5p-hightpu-4t", 1),
    "v5p-16": ("v5p-16", "v2-alpha-tpuv5", None, 2),
    "v6e-1": ("v6e-1", "v2-alpha-tpuv6e", "ct6e-standard-1t", 1),
    "v6e-4": ("v6e-4", "v2-alpha-tpuv6e", "ct6e-standard-4t", 1),
    "v6e-8": ("v6e-8", "v2-alpha-tpuv6e", "ct6e-standard-8t", 1),
    "v6e-256": ("v6e-256", "v2-alpha-tpuv6e", None, 64),
}


@pytest.mark.parametrize("name", TPUS)
def test_flags_of_each_tpu(launcher, name):
    accelerator, runtime, machine_type, hosts = TPUS[name]
    done = launcher.run("tpu_vm.sh", "--type", name, "--zone=z", "--dry-run", "--", workdir="/data/dog")
    assert f"--accelerator-type={accelerator} --runtime-version={runtime}\n" in done.stdout
    assert (f"{name} has {hosts} hosts" in done.stderr) == (hosts > 1)
    done = launcher.run("tpu_compute_engine.sh", "--type", name, "--zone=z", "--dry-run", "--")
    if machine_type:
        assert f"--machine-type={machine_type} " in done.stdout
    else:
        assert done.returncode == 1 and ("tpu_vm.sh does" in done.stderr or f"has {hosts} hosts" in done.stderr)
    assert not launcher.calls, "a dry run calls nothing"


def test_compute_engine_reservation(launcher):
    launcher.run(*COMPUTE_ENGINE, "--reservation=mine", "--delete", "--", answers=APPEARS, READY="RUNNING")
    assert {"--reservation=mine", "--reservation-affinity=specific"} < set(launcher.named("create")[0])
    assert not any(argument.startswith("--provisioning-model") for argument in launcher.named("create")[0])


@pytest.mark.parametrize("start", [TPU_VM, COMPUTE_ENGINE, GKE, ("gpu.sh",), ("slurm.sh",)])
def test_dry_run_prints_what_a_run_calls(launcher, start):
    """Pasted into a shell, the printed commands make the same calls as a run."""
    rents = start not in (("gpu.sh",), ("slurm.sh",))
    for name in ("bash", "mkdir"):
        launcher.stand_in(name)
    answers = """case " $* " in
  *" describe "*) [ "$(count " create ")" = 1 ] && { [ $1$2 = computetpus ] && echo ACTIVE || echo RUNNING; } ;;
  *--wait-for-job*) until [ "$(count "kubectl logs")" -gt 0 ]; do sleep 0.1; done ;;
  *" wait "*) [ "$(count " wait ")" = 1 ] || sleep 20 ;;
esac"""
    done = launcher.run(*start, *["--delete"] * rents, "--", workdir="/data/my dog", answers=answers)
    assert done.returncode == 0, done.stderr
    calls = launcher.calls
    dry = launcher.run(*start, *["--delete"] * rents, "--dry-run", "--", workdir="/data/my dog")
    assert dry.returncode == 0 and not launcher.calls and dry.stdout.count("\n+") + 1 == len(dry.stdout.splitlines())
    script = launcher.folder / "pasted"
    script.write_text(dry.stdout.replace("\n+ ", "\n").removeprefix("+ ").replace(".venv/bin/python", "bash"))
    launcher.run(script, program=())
    unpolled = [call for index, call in enumerate(calls) if "describe" not in call or index == 0]
    unpolled = [call for index, call in enumerate(unpolled) if "wait" not in call or call not in unpolled[:index]]
    replaced = [[argument.replace(".venv/bin/python", "bash") for argument in call] for call in unpolled]
    assert sorted(launcher.calls) == sorted(replaced)


def test_gke(launcher):
    answers = """case " $* " in
  *--wait-for-job*) until [ "$(count "kubectl logs")" -gt 0 ]; do sleep 0.1; done; exit 125 ;;
  *" wait "*) [ "$(count " wait ")" = 2 ] || { sleep 0.1; exit 1; } ;;
esac"""
    done = launcher.run(*GKE, "--spot", "--name", "dog", "--project=p", "--delete", "--", workdir="/data/dog", answers=answers)
    assert done.returncode == 125, "xpk's verdict on the workload"
    create, delete = launcher.named("create")[0], launcher.calls[-1]
    assert create[:3] == ["xpk", "workload", "create"] and delete[:3] == ["xpk", "workload", "delete"]
    for flag in ("--workload=dog", "--cluster=my-cluster", "--zone=us-east5-a", "--project=p"):
        assert flag in create and flag in delete
    assert {"--tpu-type=v6e-4", "--spot", "--max-restarts=50", "--base-docker-image=python:3.12", "--script-dir=."} < set(create)
    assert launcher.program_arguments(option(create, "command")) == ["launch/worker.sh", "tpu", *launcher.expected()]
    logs = launcher.named("logs")[0]
    assert {"--selector=xpk.google.com/workload=dog", "--follow", "--max-log-requests=1"} < set(logs)
    lost = """case " $* " in
  *--wait-for-job*) for i in {1..50}; do [ "$(count "kubectl logs")" -lt 2 ] || exit 0; sleep 0.1; done; exit 1 ;;
  *" logs "*) exit 1 ;;
esac"""
    done = launcher.run(*GKE, "--delete", "--", workdir="/data/dog", answers=lost)
    assert done.returncode == 0, "the log of the next pod is shown after that of a lost one"
    launcher.run(*GKE, "--reservation=mine", "--keep", "--", workdir="/data/dog", answers=answers)
    assert "--reservation=mine" in launcher.named("create")[0] and not launcher.named("delete")
    done = launcher.run(*GKE, "--delete", "--", workdir="runs/dog")
    assert done.returncode == 1 and "lost with its pod" in done.stderr and not launcher.calls
    done = launcher.run(*GKE, "--delete", "--", workdir="/data/dog", answers='case " $* " in *" create "*) exit 1 ;; esac')
    assert done.returncode == 1 and launcher.kinds() == ["create"], "nothing to delete"
    two_hosts = "gke.sh", "--type=v5e-8", *GKE[3:], "--dry-run", "--"
    assert "v5e-8 has 2 hosts here" in launcher.run(*two_hosts, workdir="/data/dog").stderr
    done = launcher.run(*two_hosts, workdir="gs://bucket/dog")
    assert "note:" not in done.stderr and "worker.sh\\ tpu\\,gs" in done.stdout


def test_gpus(launcher):
    launcher.stand_in("bash")
    assert launcher.run("gpu.sh", "--").returncode == 0
    assert launcher.calls == [["bash", "launch/worker.sh", "cuda,gs", *launcher.expected()]]
    copy = shutil.copy(LAUNCH / "slurm.sh", launcher.folder / "slurm_script")  # Slurm runs a copy
    done = launcher.run(Path(copy), "--", SLURM_SUBMIT_DIR=str(ROOT))
    assert done.returncode == 0, done.stderr
    environment, srun = launcher.calls
    assert environment == ["bash", "launch/worker.sh", "cuda,gs"]
    assert srun == [*"srun --ntasks-per-node=1 --kill-on-bad-exit=1 .venv/bin/python -m proxy_jax.main".split(), *launcher.expected()]
    assert "#SBATCH --requeue\n" in (LAUNCH / "slurm.sh").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tpu_vm.sh", "--type=v6e-9", "--zone=z", "--delete", "--"), "slices of v6e have"),
        (("tpu_vm.sh", "--type=v4-12", "--zone=z", "--delete", "--"), "multiple of 8"),
        (("tpu_vm.sh", "--type=v5p-x", "--zone=z", "--delete", "--"), "no TPU is called v5p-x"),
        (("tpu_vm.sh", "--type=v3-8", "--zone=z", "--delete", "--"), "no TPU is called v3-8"),
        (("tpu_vm.sh", "--type=v4-8", "--delete", "--"), "--zone is missing"),
        ((*TPU_VM, "--delete", "--keep", "--"), "exclude each other"),
        ((*TPU_VM, "--delete", "--spot", "--reserved", "--"), "do not come from a reservation"),
        ((*TPU_VM, "--delete", "--cluster=c", "--"), "unknown option --cluster=c"),
        ((*TPU_VM, "--delete=yes", "--"), "--delete takes no value"),
        (("gpu.sh", "--spot", "--"), "unknown option --spot"),
        (("gpu.sh",), "unknown option --config"),
    ],
)
def test_refusals(launcher, arguments, message):
    done = launcher.run(*arguments)
    assert done.returncode == 1 and message in done.stderr and not launcher.calls


def test_refuses_an_incomplete_command(launcher):
    for program, message in [((), "nothing to run"), (("--", "--config", "c"), "--workdir is missing")]:
        done = launcher.run("gpu.sh", program=program)
        assert done.returncode == 1 and message in done.stderr
    assert "--zone needs a value" in launcher.run("tpu_vm.sh", "--zone", program=()).stderr


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_compute_engine.sh", "gke.sh", "gpu.sh", "slurm.sh"])
def test_help_is_the_scripts_head_and_options(launcher, script):
    done = launcher.run(script, "--help", program=())
    assert done.returncode == 0 and launcher.calls == [] and f"launch/{script} " in done.stdout
    assert "shellcheck" not in done.stdout and done.stdout.splitlines()[-1].startswith("options: --")
    assert ("--zone=VALUE" in done.stdout) == (script not in ("gpu.sh", "slurm.sh")) and "--dry-run" in done.stdout


def test_detached(launcher):
    """The program outlives a connection, runs once, and its failure has a status of its own."""
    start = ["/bin/bash", str(LAUNCH / "detached.sh"), "bash", "-c", "echo started >>runs; echo a; until [ -f go ]; do sleep 0.1; done; echo b"]
    settings = dict(cwd=launcher.folder, env=launcher.environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    lost = subprocess.Popen(start, **settings)
    assert lost.stdout.readline() == "a\n"
    os.killpg(lost.pid, signal.SIGKILL)
    lost.communicate()
    other = launcher.run(LAUNCH / "detached.sh", "echo", program=())
    assert other.returncode == 3 and "another command still runs here: bash -c echo started" in other.stderr
    again = subprocess.Popen(start, **settings)
    assert again.stdout.readline() == "a\n"
    (launcher.folder / "go").touch()
    assert again.communicate(timeout=20)[0] == "b\n" and again.returncode == 0
    assert (launcher.folder / "runs").read_text() == "started\n"
    failed = launcher.run(LAUNCH / "detached.sh", "bash", "-c", "echo sorry; exit 1", program=())
    assert (failed.returncode, failed.stdout) == (3, "sorry\n")
    assert launcher.run(LAUNCH / "detached.sh", "bash", "-c", "exit 75", program=()).returncode == 75


def test_worker(launcher):
    """Makes the environment, also on an image whose Python is too old, and runs the program."""
    (launcher.folder / "launch").mkdir()
    for name in ("worker.sh", "environment.sh"):
        shutil.copy(LAUNCH / name, launcher.folder / "launch")
    for name in ("python3.13", "python3.12", "python3.11", "python3", "python", "curl", "uv", "venv_python"):
        launcher.stand_in(name)
    uv = launcher.folder / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    (launcher.bin / "uv").rename(uv)
    answers = """case $0 in
  */.venv/bin/python | .venv/bin/python) ;;
  */python*) exit 1 ;;
  */uv) mkdir -p .venv/bin; cp "$(dirname "$CALLS")/bin/venv_python" .venv/bin/python ;;
esac"""
    done = launcher.run(launcher.folder / "launch" / "worker.sh", "tpu", answers=answers)
    assert done.returncode == 0, done.stderr
    made = next(call for call in launcher.calls if call[0] == "uv")
    assert made[1:] == ["venv", "--seed", "--python", "3.12", ".venv"]
    assert launcher.calls[-2][-2:] == ["--editable", ".[tpu]"]
    assert launcher.calls[-1] == ["python", "-m", "proxy_jax.main", *launcher.expected()]
    launcher.run(launcher.folder / "launch" / "worker.sh", "cuda", program=(), answers=answers)
    assert [call[-1] for call in launcher.calls] == [".[cuda]"], "the environment is there, and there is nothing to run"


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted(str(path.relative_to(ROOT)) for path in LAUNCH.glob("*.sh"))
    done = subprocess.run([shellcheck, "--shell=bash", "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    for script in {*scripts} - {"launch/common.sh", "launch/environment.sh"}:
        assert "\nset -euo pipefail\n" in (ROOT / script).read_text(), script
