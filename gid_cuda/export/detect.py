"""An exported detector without torch: resize, pad, run, decode, remove duplicates. Needs numpy and onnxruntime.

    from detect import Detector
    detector = Detector("student.onnx")
    found = detector(image)  # (H, W, 3) uint8, RGB -> {"boxes": (N, 4) x0 y0 x1 y1 in its pixels, "scores", "labels"}
    detector.classes[found["labels"][0]]

From a shell, with pillow besides: python detect.py student.onnx photo.jpg [photo.jpg ...]

What the ONNX file does not do itself (sizes, anchors, thresholds) stands in its metadata. Results are those of the
detector that it was exported from, but for rounding.
"""

import json
import math
import sys

NEEDED = "numpy onnxruntime pillow"


def unusable(error):
    """An import's failure in a sentence: the package is not there, or is and does not load."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("numpy", "onnxruntime", "PIL"):
        return f"{error.name} is not installed: pip install {NEEDED}"
    return f"a package does not load ({' '.join(str(error).split())[:300]}): pip install --force-reinstall {NEEDED}"


try:
    import numpy as np
except ImportError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {unusable(error)}")

METADATA = "gid_cuda"
MAX_LOG_SCALE = math.log(1000.0 / 16)
DIVISOR = 32  # of the padded height and width
LEAST_PROPOSAL, LEAST_BOX = 1e-3, 1e-2  # pixels a side, in two stages


class Detector:
    """path: student.onnx; student_boxes.onnx, where a detector has it, lies beside it. providers: onnxruntime's, the
    CPU's alone by default. score_threshold: boxes with no higher score are left out; none: the exported one."""

    def __init__(self, path, providers=("CPUExecutionProvider",), score_threshold=None):
        self.session = load(path, providers)
        metadata = self.session.get_modelmeta().custom_metadata_map
        if METADATA not in metadata:
            raise ValueError(f"{path} has no metadata {METADATA!r}: give the student.onnx that gid_cuda's export wrote")
        self.settings = json.loads(metadata[METADATA])
        if score_threshold is not None:
            self.settings["score_thresh"] = score_threshold
        self.classes = self.settings["classes"]
        self.of_boxes = self._second_stage(path, providers) if "proposals" in self.settings else None

    def __call__(self, image):
        pixels, size = prepare(image, self.settings)
        outputs = self.session.run(None, {"images": pixels[None]})
        if self.of_boxes is None:
            boxes, scores, labels = detections([output[0] for output in outputs], pixels.shape[1:], size, self.settings)
        else:
            boxes, scores, labels = self._of_proposals(outputs, pixels.shape[1:], size)
        height, width = image.shape[:2]
        scale = np.array([width / size[1], height / size[0]] * 2, np.float32)
        return {"boxes": boxes * scale, "scores": scores, "labels": labels}

    def _second_stage(self, path, providers):
        file = boxes_file(path)
        try:
            session = load(file, providers)
        except FileNotFoundError:
            raise ValueError(f"{file} is missing: {path} goes on in it, so copy both from the export") from None
        given = {value.name: value.shape for value in self.session.get_outputs()[2:]}
        taken = {value.name: value.shape for value in session.get_inputs()}
        fits = all(name in taken and taken[name][1] == shape[1] for name, shape in given.items())  # channels
        if not fits or session.get_outputs()[0].shape[-1] != len(self.classes) + 1:
            raise ValueError(f"{file} does not belong to {path}: copy both from one export")
        return session

    def _of_proposals(self, outputs, padded, size):
        rois = by_level(proposals(outputs[0][0], outputs[1][0], padded, size, self.settings), self.settings)
        # A level without a box gets one, for the network cannot do without; what comes of it is left out again.
        filled = [level if len(level) else np.zeros((1, 4), np.float32) for level in rois]
        feed = {f"level{index}": level for index, level in enumerate(outputs[2:])}
        feed |= {f"rois{index}": level for index, level in enumerate(filled)}
        real = np.concatenate([np.full(len(level), bool(len(own))) for level, own in zip(filled, rois, strict=True)])
        logits, deltas = self.of_boxes.run(None, feed)
        return boxes_of_classes(np.concatenate(filled)[real], logits[real], deltas[real], size, self.settings)


def load(path, providers):
    """An ONNX file. OSError where it cannot be read, ValueError where it holds something else."""
    import onnxruntime

    with open(path, "rb"):  # onnxruntime tells a missing file by a page of text
        pass
    try:
        return onnxruntime.InferenceSession(str(path), providers=list(providers))
    except Exception as error:  # its exceptions have no class in common but this
        raise ValueError(f"{path} is no ONNX file that can be used ({str(error).splitlines()[0][:200]})") from None


def boxes_file(path):
    """student.onnx -> student_boxes.onnx: the second stage."""
    return str(path).removesuffix(".onnx") + "_boxes.onnx"


def prepare(image, settings):
    """(H, W, 3) uint8 RGB -> float32 (3, h, w) in [0, 1], resized and padded with the mean; and the (height, width)
    before padding. The network itself subtracts the mean and divides by the standard deviation."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} of shape {image.shape}, expected uint8 of shape (H, W, 3)")
    scale = min(settings["min_size"] / min(image.shape[:2]), settings["max_size"] / max(image.shape[:2]))
    size = tuple(math.floor(side * scale) for side in image.shape[:2])
    if min(size) < 1:
        raise ValueError(f"image has {image.shape[0]} x {image.shape[1]} pixels: too narrow to be resized")
    resized = resize(image.astype(np.float32) / 255, size)
    padded = [math.ceil(side / DIVISOR) * DIVISOR for side in size]
    pixels = np.empty((3, *padded), np.float32)
    pixels[:] = np.array(settings["mean"], np.float32)[:, None, None]
    pixels[:, : size[0], : size[1]] = resized.transpose(2, 0, 1)
    return pixels, size


def resize(image, size):
    """Bilinear, half-pixel centres, no smoothing: what torch's interpolate does. (H, W, Ch) -> (h, w, Ch)."""
    for axis in (0, 1):
        if image.shape[axis] == size[axis]:
            continue
        step = np.float32(image.shape[axis] / size[axis])
        place = np.maximum((np.arange(size[axis], dtype=np.float32) + np.float32(0.5)) * step - np.float32(0.5), 0)
        low = np.minimum(place.astype(np.int64), image.shape[axis] - 1)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        weight = (place - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = image.take(low, axis) * (1 - weight) + image.take(high, axis) * weight
    return image


def detections(outputs, padded, size, settings):
    """The network's outputs of one image -> boxes (N, 4) in pixels of the resized image, scores, labels.

    outputs: logits (R, C), deltas (R, 4), and FCOS's centerness (R, 1). padded, size: (height, width) with padding and
    without."""
    logits, deltas = outputs[:2]
    centerness = outputs[2][:, 0] if len(outputs) > 2 else None
    anchors = level_anchors(padded, settings)
    threshold, found, first = settings["score_thresh"], [], 0
    for level in anchors:
        last = first + len(level)
        ours = None if centerness is None else centerness[first:last]
        rows, scores, labels = candidates(logits[first:last], ours, threshold, settings["topk_candidates"])
        boxes = decode(deltas[first:last][rows], level[rows], settings["weights"], settings["coder"])
        found.append((clip(boxes, size), scores, labels))
        first = last
    check_count(logits, first)
    boxes, scores, labels = (np.concatenate(parts) for parts in zip(*found, strict=True))
    kept = nms(boxes, scores, labels, settings["nms_thresh"], settings["detections_per_img"])
    return boxes[kept], scores[kept], labels[kept]


def proposals(logits, deltas, padded, size, settings):
    """The RPN's outputs (R, 1) and (R, 4) -> the boxes (n, 4) that the second stage looks at."""
    found, first = [], 0
    for index, level in enumerate(level_anchors(padded, settings)):
        last = first + len(level)
        rows = np.argsort(-logits[first:last, 0], kind="stable")[: settings["proposals_a_level"]]
        boxes = clip(decode(deltas[first:last][rows], level[rows], settings["weights"], settings["coder"]), size)
        scores = sigmoid(logits[first:last, 0][rows])
        kept = large(boxes, LEAST_PROPOSAL) & (scores >= settings["proposals_score_thresh"])
        found.append((boxes[kept], scores[kept], np.full(kept.sum(), index)))
        first = last
    check_count(logits, first)
    boxes, scores, groups = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return boxes[nms(boxes, scores, groups, settings["proposals_nms_thresh"], settings["proposals"])]


def by_level(boxes, settings):
    """(n, 4) -> the boxes of each level that crops are taken from, finest first."""
    size, level = settings["canonical"]
    sides = boxes[:, 2:] - boxes[:, :2]
    with np.errstate(divide="ignore"):
        place = np.floor(level + np.log2(np.sqrt(sides[:, 0] * sides[:, 1]) / np.float32(size)) + np.float32(1e-6))
    first, last = (int(math.log2(stride)) for stride in (settings["roi_strides"][0], settings["roi_strides"][-1]))
    place = np.clip(place, first, last)
    return [boxes[place == index] for index in range(first, last + 1)]


def boxes_of_classes(rois, logits, deltas, size, settings):
    """The second stage's outputs (n, C + 1) and (n, 4 (C + 1)), 0 the background -> boxes, scores, labels from 0."""
    logits = logits - logits.max(axis=1, keepdims=True)
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows, labels = np.nonzero(scores[:, 1:] > settings["score_thresh"])
    encoded = deltas.reshape(*logits.shape, 4)[rows, labels + 1]
    boxes, scores = clip(decode(encoded, rois[rows], settings["box_weights"]), size), scores[rows, labels + 1]
    kept = large(boxes, LEAST_BOX)
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    kept = nms(boxes, scores, labels, settings["nms_thresh"], settings["detections_per_img"])
    return boxes[kept], scores[kept], labels[kept]


def large(boxes, least):
    return (boxes[:, 2:] - boxes[:, :2] >= np.float32(least)).all(axis=1)


def check_count(logits, anchors):
    if anchors != len(logits):
        raise ValueError(f"the network gave {len(logits)} boxes and its anchors are {anchors}: of another detector")


def candidates(logits, centerness, threshold, most):
    """The best pairs of row and class with a score above the threshold: rows, scores and labels, (n,) each."""
    least = threshold if centerness is None else threshold * threshold  # that the class's own score must have
    lowest = math.log(least / (1 - least)) - 1e-3 if 0 < least < 1 else (-math.inf if least <= 0 else math.inf)
    near = np.flatnonzero(logits.max(axis=1) > lowest)  # of the others no score is computed
    scores = sigmoid(logits[near])
    if centerness is not None:
        scores = np.sqrt(scores * sigmoid(centerness[near])[:, None])
    pairs = np.flatnonzero(scores > threshold)
    best = pairs[np.argsort(-scores.flat[pairs], kind="stable")[:most]]
    rows, labels = best // logits.shape[1], best % logits.shape[1]
    return near[rows], scores[rows, labels], labels


def level_anchors(padded, settings):
    """One (rows * columns * A, 4) a level: the cell's anchors around the corner of each cell of its map."""
    height, width = padded
    levels, rows, columns = [], height // settings["first_stride"], width // settings["first_stride"]
    for cell in settings["cell_anchors"]:
        y, x = np.meshgrid(
            np.arange(rows, dtype=np.float32) * (height // rows),
            np.arange(columns, dtype=np.float32) * (width // columns),
            indexing="ij",
        )
        corners = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
        levels.append((corners + np.array(cell, np.float32)).reshape(-1, 4))
        rows, columns = -(-rows // 2), -(-columns // 2)
    return levels


def decode(deltas, anchors, weights, coder="deltas"):
    """(n, 4) encoded against (n, 4) anchors -> (n, 4) boxes."""
    size = anchors[:, 2:] - anchors[:, :2]
    center = anchors[:, :2] + np.float32(0.5) * size
    deltas = deltas / np.array(weights, np.float32)
    if coder == "distances":
        return np.concatenate([center - deltas[:, :2] * size, center + deltas[:, 2:] * size], axis=1)
    center = center + deltas[:, :2] * size
    half = np.float32(0.5) * np.exp(np.minimum(deltas[:, 2:], np.float32(MAX_LOG_SCALE))) * size
    return np.concatenate([center - half, center + half], axis=1)


def clip(boxes, size):
    height, width = size
    return np.minimum(np.maximum(boxes, 0), np.array([width, height, width, height], np.float32))


def nms(boxes, scores, groups, iou_threshold, most):
    """Greedy, within each group; indices of the first `most` that are kept, best first."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order) and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        inter = np.maximum(high - low, 0).prod(axis=1)
        over = inter > np.float32(iou_threshold) * (area[best] + area[order] - inter)
        order = order[~over | (groups[order] != groups[best])]
    return np.array(kept, np.int64)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.clip(x, -80, 80)))


def read_photo(name):
    """(H, W, 3) uint8 RGB, as stored: no EXIF orientation, as in training."""
    from PIL import Image

    with open(name, "rb") as file:
        try:
            return np.asarray(Image.open(file).convert("RGB"))
        except Exception:  # pillow's decoders raise whatever a broken file makes them
            raise ValueError("no image that pillow can read, or it is damaged") from None


def main(arguments):
    """The exit status: 1 where a photo, or the detector, could not be used."""
    if len(arguments) < 2:
        print("usage: python detect.py student.onnx photo.jpg [photo.jpg ...]", file=sys.stderr)
        return 2
    try:
        detector = Detector(arguments[0])
    except (ImportError, OSError, ValueError) as error:
        return mistake(error)
    status = 0
    for name in arguments[1:]:
        try:
            found = detector(read_photo(name))
        except (ImportError, OSError, ValueError) as error:
            status = mistake(error, f"{name}: ")
            continue
        for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
            print(f"{name}\t{detector.classes[label]}\t{score:.3f}\t" + " ".join(f"{value:.1f}" for value in box))
    return status


def mistake(error, where=""):
    text = f"{where}{error}"
    if isinstance(error, ImportError):
        text = unusable(error)
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}"
    print(f"error: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
