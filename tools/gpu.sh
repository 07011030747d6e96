#!/bin/sh
# What a data-centre GPU gives in 11 minutes: networks that take hours on a CPU, the tests marked gpu, and a bench.
#
#   tools/gpu.sh pack FOLDER                  the tree and the data that the steps need, at most 60 MB
#   tools/gpu.sh DEVICE OUT [--one-batch]     run the steps, here or in such a folder
#
# The most wanted step is first, and none takes more than four minutes. A step that was stopped continues from its last
# epoch when the same command runs again; finished steps are skipped. OUT gets one archive a network, of at most 16 MB,
# and one log.
# Data is read from ./data if the folder was packed, else from $INVBENCH_DATA. Packed images of CIFAR-10 are JPEGs of
# quality 90, whose bytes differ by 3 of 255 on average. Python is $PYTHON, and checkpoints lie in $GPU_WORK (build/gpu).
# With --one-batch each training takes one batch, which tests the steps on a CPU.
set -u
python=${PYTHON:-python3}

pack() {
    mkdir -p "$1/data/mnist"
    git ls-files | grep -Ev '^(reports|docs|benchmarks)/|\.safetensors$' | tar -cf - -T - | tar -xf - -C "$1"
    cp "${INVBENCH_DATA:?}"/mnist/*.gz "$1/data/mnist/"
    "$python" - "$INVBENCH_DATA/cifar-10-batches-bin" "$1/data" <<'EOF'
import sys
from pathlib import Path
import numpy as np
from PIL import Image
source, target = map(Path, sys.argv[1:])
for name, pattern in (("train", "data_batch_?.bin"), ("test", "test_batch.bin")):
    read = [np.fromfile(path, np.uint8).reshape(-1, 3073) for path in sorted(source.glob(pattern))]
    records = np.concatenate(read)
    rows = records[:, 1:].reshape(-1, 100, 3, 32, 32).transpose(0, 3, 1, 4, 2)
    mosaic = Image.fromarray(rows.reshape(-1, 3200, 3))
    mosaic.save(target / f"cifar10-{name}.jpg", quality=90, subsampling=0)
    np.save(target / f"cifar10-{name}.npy", records[:, 0])
EOF
    du -cm --exclude=.git "$1" | tail -n 1
}

if [ "$1" = pack ]; then pack "$2"; exit; fi
device=$1 out=$2 short=${3:-}
work=${GPU_WORK:-build/gpu}
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

# network NAME SECONDS RECIPE [EDIT…]: train what a recipe with sed's edits describes; archive the model, or its
# checkpoint if time ran out
network() {
    name=$1 seconds=$2 source=models/$3/recipe.toml
    shift 3
    recipe=$work/recipes/$name/recipe.toml
    mkdir -p "$(dirname "$recipe")"
    cp "$source" "$recipe"
    for edit in "$@"; do sed -i -e "$edit" "$recipe"; done
    if [ -e "$work/cifar10-train.npz" ]; then
        sed -i -e "s|^dataset = \"cifar10:split=train\"|dataset = \"npz:$work/cifar10-train.npz\"|" \
            -e "s|^held_out = .*cifar10.*|held_out = [\"npz:$work/cifar10-test.npz\"]|" "$recipe"
    fi
    if [ -n "$short" ]; then
        sed -i -e 's/^first = .*/first = 0/;s/^last = .*/last = 250/;s/^epochs = .*/epochs = 1/' \
            -e '/^milestones = /d;/^rate_factor = /d;s/^schedule = .*/schedule = "constant"/' \
            -e "s|^held_out = .*|held_out = [\"npz:$work/few-${name%%-*}.npz\"]|" "$recipe"
    fi
    step "$name" "$seconds" "$python" -m robustbench_inv train "$recipe" --device "$device" --out "$work/$name"
    if [ -d "$work/$name/models" ]; then
        tar -czf "$out/$name.tar" -C "$work" "$name/models"
    elif [ -d "$work/$name" ]; then
        tar -czf "$out/$name.tar" -C "$work" "$name"
        size=$(du -m "$out/$name.tar" | cut -f 1)
        if [ "$size" -gt 16 ]; then
            rm "$out/$name.tar"
            log "$name: its checkpoint of $size MB stays in $work, since files of at most 16 MB come back"
        fi
    fi
}

if [ -e data/cifar10-train.jpg ]; then
    export INVBENCH_DATA="$PWD/data"
    [ -e "$work/cifar10-test.npz" ] || "$python" - "$work" <<'EOF'
import sys
from pathlib import Path
import numpy as np
from PIL import Image
Image.MAX_IMAGE_PIXELS = None
for name in ("train", "test"):
    mosaic = np.asarray(Image.open(f"data/cifar10-{name}.jpg"))
    x = mosaic.reshape(-1, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    np.savez(Path(sys.argv[1]) / f"cifar10-{name}.npz", x=x, y=np.load(f"data/cifar10-{name}.npy"))
EOF
fi

if [ -n "$short" ]; then
    "$python" -c '
import sys, numpy as np
for name, shape in (("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))):
    x = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    np.savez(f"{sys.argv[1]}/few-{name}.npz", x=x, y=np.arange(20) % 10)
' "$work"
fi

long='s/^epochs = .*/epochs = 100/'
paper='s/^blocks = .*/blocks = 16/;s/^width = .*/width = 128/'
network cifar10-sdim 150 cifar10-sdim "$long"
network cifar10-resnet26 70 cifar10-resnet26 "$long"
network mnist-firevnet-paper-ce 80 mnist-firevnet-conv-ce "$paper"
network mnist-firevnet-paper-ice 110 mnist-firevnet-conv-ice "$paper"
# 3 stages of 7 blocks at 32×32, 16×16 and 8×8 as in the paper; float16 keeps the archive below 16 MB
network cifar10-iresnet-c09 80 mnist-iresnet-c09 's/^dataset = "mnist:split=train"/dataset = "cifar10:split=train"/' \
    's/^first = .*/first = 0/;s/^last = .*/last = 50_000/;s/^held_out = .*/held_out = ["cifar10"]/' \
    's/^shift = .*/shift = 4\nflip = true/;s/^storage = .*/storage = "float16"/' \
    's/^blocks = .*/blocks = [7, 7, 7]/;s/^width = .*/width = 32\nshape = [3, 32, 32]/;s/^padding = .*/padding = 13/' \
    's/^dataset = "mnist"/dataset = "cifar10"/;s/^pool = .*/pool = true/'
network cifar10-resnet10-at 80 cifar10-resnet10-at
step tests 45 "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_device.py
step bench 45 "$python" - "$device" "${short:+32}" <<'EOF'
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
