#!/bin/sh
# What one data-centre GPU gives in 11 minutes: networks that take hours on a CPU, the tests marked gpu, and a bench.
#
#   tools/gpu.sh pack FOLDER                        the tree and the data that the trainings need, at most 60 MB
#   tools/gpu.sh check DEVICE OUT [--one-batch]     the tests marked gpu and a bench, to OUT/gpu.log
#   tools/gpu.sh train DEVICE OUT [--one-batch]     the trainings, here or in such a folder
#   tools/gpu.sh collect OUT                        what was trained since the last call: archives of at most 16 MB
#
# One network leaves most of a GPU idle, so $GPU_LANES processes (12) train at once, the most wanted network first, until
# all are trained or $GPU_SECONDS (600) are over. The same command continues from the last epoch of each network.
# Networks whose data are missing are left out; call `train` again when they are there.
# Data is read from ./data if the folder was packed, else from $INVBENCH_DATA. Packed images of CIFAR-10 are JPEGs of
# quality 90, whose bytes differ by 3 of 255 on average. Fashion-MNIST (30 MB) may be added to ./data/fashion-mnist.
# Python is $PYTHON, and checkpoints lie in $GPU_WORK (build/gpu).
# With --one-batch each training takes one batch, which tests the script on a CPU.
set -u
python=${PYTHON:-python3}
work=${GPU_WORK:-build/gpu}

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

unpack_cifar10() {
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
}

few_images() {
    "$python" -c '
import sys, numpy as np
for name, shape in (("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))):
    x = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    np.savez(f"{sys.argv[1]}/few-{name}.npz", x=x, y=np.arange(20) % 10)
' "$work"
}

# network NAME SEEDS RECIPE [EDIT…]: add what a recipe with sed's edits describes to the queue
network() {
    name=$1 seeds=$2 source=models/$3/recipe.toml
    case $name in
        fashion*) [ -n "$(ls "${INVBENCH_DATA:-}/fashion-mnist" /usr/share/datasets/fashion-mnist 2>/dev/null)" ] || return 0 ;;
    esac
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
        images=mnist
        case $name in cifar10*) images=cifar10 ;; esac
        sed -i -e 's/^first = .*/first = 0/;s/^last = .*/last = 250/;s/^epochs = .*/epochs = 1/' \
            -e '/^milestones = /d;/^rate_factor = /d;s/^schedule = .*/schedule = "constant"/' \
            -e "s|^held_out = .*|held_out = [\"npz:$work/few-$images.npz\"]|" "$recipe"
    fi
    rank=$((rank + 1))
    cat >>"$queue" <<EOF

[[entry]]
recipe = "recipes/$name/recipe.toml"
seeds = [$seeds]
priority = $rank
seconds_per_epoch = 1
why = "on a GPU"
EOF
}

write_queue() {
    queue=$work/queue.toml rank=0
    echo "snapshots = [20, 80]" >"$queue"
    long='s/^epochs = .*/epochs = 100/'
    network cifar10-sdim 0 cifar10-sdim "$long"
    network cifar10-resnet26 0 cifar10-resnet26 "$long"
    network mnist-c-js-200 1,2 mnist-c-js-200
    network mnist-c-dv-200 1,2 mnist-c-dv-200
    network mnist-cnn-200 1,2 mnist-cnn-200
    for name in mnist-vib-200 mnist-lenet5-200 mnist-c-dv-ie-200 mnist-c-js-ie-200 mnist-sdim-100 \
        fashion-mnist-lenet5-200 fashion-mnist-cnn-200 fashion-mnist-c-dv-200 fashion-mnist-c-js-200 \
        fashion-mnist-vib-200 fashion-mnist-c-dv-ie-200 fashion-mnist-c-js-ie-200 fashion-mnist-sdim-100 \
        cifar10-resnet10-at mnist-resnet10-100 fashion-mnist-resnet10-100; do
        network $name 0 $name
    done
    paper='s/^blocks = .*/blocks = 16/;s/^width = .*/width = 128/'
    network mnist-firevnet-paper-ce 0 mnist-firevnet-conv-ce "$paper"
    network mnist-firevnet-paper-ice 0 mnist-firevnet-conv-ice "$paper"
    # 3 stages of 7 blocks at 32×32, 16×16 and 8×8 as in the paper; float16 halves the archive
    network cifar10-iresnet-paper-c09 0 mnist-iresnet-c09 \
        's/^dataset = "mnist:split=train"/dataset = "cifar10:split=train"/' \
        's/^first = .*/first = 0/;s/^last = .*/last = 50_000/;s/^held_out = .*/held_out = ["cifar10"]/' \
        's/^shift = .*/shift = 4\nflip = true/;s/^storage = .*/storage = "float16"/' \
        's/^blocks = .*/blocks = [7, 7, 7]/;s/^width = .*/width = 32\nshape = [3, 32, 32]/;s/^padding = .*/padding = 13/' \
        's/^dataset = "mnist"/dataset = "cifar10"/;s/^pool = .*/pool = true/'
    for name in models/ablation/*/; do network "$(basename "$name")" 0 "ablation/$(basename "$name")"; done
}

train() {
    [ ! -e data/cifar10-train.jpg ] || unpack_cifar10
    [ -z "$short" ] || few_images
    write_queue
    lanes=${GPU_LANES:-12} lane=0 running=
    while [ $lane -lt "$lanes" ]; do
        lane=$((lane + 1))
        timeout --signal=INT --kill-after=10 "${GPU_SECONDS:-600}" "$python" -m robustbench_inv queue "$queue" \
            --out "$work/networks" --device "$device" >"$work/lane-$$-$lane.log" 2>&1 &
        running="$running $!"
    done
    failed=0
    for process in $running; do
        wait "$process"
        code=$?
        [ $code -eq 0 ] || [ $code -eq 124 ] || failed=1  # 124: time is over
    done
    return $failed
}

# Archives of the models that are not in an earlier one, in groups of at most 15 MB: at most seven archives, then the log
collect() {
    "$python" - "$work" "$out" <<'EOF'
import sys, tarfile
from pathlib import Path
work, out = map(Path, sys.argv[1:])
total_of = lambda parts: sum(f.stat().st_size for p in parts for f in [p, *p.rglob("*")] if f.is_file())
archives, done = [], work / "collected"
done.mkdir(exist_ok=True)
for model in sorted((work / "networks").glob("*/models/*")):
    if not (model / "card.toml").exists() or (done / model.name).exists():
        continue
    folder = model.parent.parent
    parts = [model, *folder.glob("metrics.jsonl"), *folder.glob("snapshots/*.safetensors")]
    if total_of(parts) > 15e6:
        parts = parts[:2]  # without snapshots
    if (total := total_of(parts)) > 15e6:
        print(f"{model.name} of {total / 1e6:.0f} MB stays in {work}")
        continue
    if not archives or archives[-1][0] + total > 15e6:
        if len(archives) == 7:
            break
        archives.append([0, []])
    archives[-1][0] += total
    archives[-1][1].append((model.name, parts))
for number, (_, members) in enumerate(archives):
    with tarfile.open(out / f"networks-{number}.tar", "w") as file:
        for name, parts in members:
            for part in parts:
                file.add(part, part.relative_to(work / "networks"))
    for name, _ in members:
        (done / name).touch()
    print(f"networks-{number}.tar:", *(name for name, _ in members))
EOF
}

bench() {
    "$python" - "$device" "${short:+32}" <<'EOF'
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
print()
EOF
}

check() {
    "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_device.py && bench
}

command=$1
case $command in
    pack) pack "$2"; exit ;;
    collect) device=none out=$2 short= ;;
    check | train) device=$2 out=$3 short=${4:-} ;;
    *) sed -n '2,/^set/p' "$0" | grep '^#'; exit 2 ;;
esac
mkdir -p "$work" "$out"
[ ! -e data/cifar10-train.jpg ] || export INVBENCH_DATA="$PWD/data"
code=0
"$command" >"$work/$command.log" 2>&1 || code=$?
cat "$work/$command.log" | tee -a "$out/gpu.log"
exit $code
