"""Asks `phalanx study` for trials and runs them here. usage: search.py SWEEP.toml [more arguments of `phalanx study`]"""
import json
import math
import subprocess
import sys


def loss(params, epoch):
    """The learning curve of a model that is not there."""
    end = 0.1 + (math.log10(params["lr"]) + 2) ** 2 / 4 + (params["layers"] - 3) ** 2 / 40 + abs(params["dropout"] - 0.1)
    return end + 2 / (1 + epoch)


study = subprocess.Popen(["phalanx", "study", *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def say(**request):
    study.stdin.write(json.dumps(request) + "\n")
    study.stdin.flush()
    answer = json.loads(study.stdout.readline())
    if "error" in answer:
        raise SystemExit(answer["error"])
    return answer


epochs, reached = 0, {}
while "trial" in (asked := say(op="ask")):
    trial = asked["trial"]
    number, decision = trial["number"], "continue"
    # A promoted trial goes on where it paused.
    for epoch in range(reached.get(number, 0) + 1, 28):
        epochs, reached[number] = epochs + 1, epoch
        decision = say(op="report", number=number, step=epoch, value=loss(trial["params"], epoch))["decision"]
        if decision != "continue":
            break
    if decision != "pause":
        say(op="tell", number=number, state="complete")
best = say(op="best")["best"]
print(f"best {best['value']:.3f} in trial {best['number']}: {best['params']}")
print(f"{epochs} epochs of {27 * len(reached)}")
print("importance", {name: round(share, 2) for name, share in say(op="importance")["importance"].items()})
