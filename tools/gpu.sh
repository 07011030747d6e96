#!/bin/sh
# What a data-centre GPU gives in 11 minutes: networks that take hours on a CPU, the tests marked gpu, and a bench.
#
#   tools/gpu.sh DEVICE OUT [--one-batch]
#
# The most wanted step is first, and none takes more than four minutes. A step that was stopped continues from its last
# epoch when the same command runs again; finished steps are skipped. OUT gets one archive a network and one log.
# Data is read from $INVBENCH_DATA, Python is $PYTHON, and checkpoints lie in $GPU_WORK (build/gpu). With --one-batch
# each training takes one batch, which tests the steps on a CPU.
set -u
device=$1 out=$2 short=${3:-}
work=${GPU_WORK:-build/gpu} python=${PYTHON:-python3}
mkdir -p "$work" "$out"
out=$(cd "$out" && pwd)
failed=0

log() { echo "$*" | tee -a "$out/gpu.log"; }

# step NAME SECONDS COMMAND…: run a command unless it has ended well before; 124 is a stop after its time
step() {
    name=$1 seconds=$2
    shift 2
    if [ -n "$short" ]; then seconds=$((10 * seconds)); fi
    if [ -e "$work/$name.done" ]; then log "$name: done before"; return 0; fi
    began=$(date +%s)
    timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$work/$name.log" 2>&1
    code=$?
    log "$name: exit code $code after $(($(date +%s) - began)) s; $(tail -n 1 "$work/$name.log")"
    if [ $code -eq 0 ]; then touch "$work/$name.done"; return 0; fi
    [ $code -eq 124 ] || failed=1
}

# network RECIPE SECONDS: train it, and archive the model, or its checkpoint if time ran out
network() {
    recipe="models/$1/recipe.toml"
    if [ -n "$short" ]; then
        recipe="$work/recipes/$1/recipe.toml"
        mkdir -p "$(dirname "$recipe")"
        sed -e 's/^last = .*/last = 125/' -e 's/^epochs = .*/epochs = 1/' "models/$1/recipe.toml" >"$recipe"
    fi
    step "$1" "$2" "$python" -m robustbench_inv train "$recipe" --device "$device" --out "$work/$1"
    if [ -d "$work/$1" ]; then tar -cf "$out/$1.tar" -C "$work" "$1"; fi
}

network cifar10-sdim 150
network cifar10-resnet26 90
network mnist-firevnet-conv-ce 80
network mnist-firevnet-conv-ice 110
network cifar10-resnet10-at 110
step tests 60 "$python" -m pytest -q -p no:cacheprovider tests/gpu
step bench 60 "$python" - "$device" "${short:+32}" <<'EOF'
import sys, tempfile, time, torch
import robustbench_inv as rbi
from robustbench_inv.models.resnet import ResNetClassifier
device, n = sys.argv[1], int(sys.argv[2] or 1000)
torch.manual_seed(0)
x, net = torch.rand(n, 3, 32, 32), ResNetClassifier(blocks=1, channels=3).eval()
y = net(x).argmax(1)
for attack in ("fgsm", "pgd", "apgd"):
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run = rbi.evaluate(net, x=x, y=y, attack=attack, threat="linf=8/255", device=device, out=folder, checks=False)
        s = run.summary()[0]
        print(f"{attack} {time.perf_counter() - began:.1f} s, {s.forward_passes:.0f} passes a sample", end="; ")
EOF
if [ -f "$work/bench.log" ]; then cat "$work/bench.log" >>"$out/gpu.log"; fi
exit $failed
