"""A z-buffer at C speed in numba, to measure ours against: scanlines over boxes, edge functions stepped in integers.

The same rules as `renderer.rasterize` (1/256 px, top-left edges, back faces culled, nearest 1/z), so the ids agree.
It only draws triangles that lie before the camera and within 2^15 px.
"""

import numba
import numpy as np


@numba.njit
def zbuffer(pixels, depth, triangles, height, width):
    """Id of the triangle that each pixel sees, -1 for none; float32 (V, 2), float32 (V,), int32 (T, 3)."""
    ids = np.full((height, width), -1, np.int32)
    nearness = np.zeros((height, width), np.float32)
    x, y, w = np.empty(len(pixels), np.int64), np.empty(len(pixels), np.int64), np.empty(len(pixels), np.float32)
    for i in range(len(pixels)):
        x[i], y[i] = int(np.rint(pixels[i, 0] * 256)), int(np.rint(pixels[i, 1] * 256))
        w[i] = np.float32(1) / depth[i]
    for t in range(len(triangles)):
        a, c, b = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, bx, by, cx, cy = x[a], y[a], x[b], y[b], x[c], y[c]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area <= 0:
            continue
        x0, x1 = max((min(ax, bx, cx) + 127) >> 8, 0), min((max(ax, bx, cx) - 128) >> 8, width - 1)
        y0, y1 = max((min(ay, by, cy) + 127) >> 8, 0), min((max(ay, by, cy) - 128) >> 8, height - 1)
        if x1 < x0 or y1 < y0:
            continue
        px, py = x0 * 256 + 128, y0 * 256 + 128
        edge_a = (cx - bx) * (py - by) - (cy - by) * (px - bx)
        edge_b = (ax - cx) * (py - cy) - (ay - cy) * (px - cx)
        edge_c = (bx - ax) * (py - ay) - (by - ay) * (px - ax)
        per_area = np.float32(1) / np.float32(area)
        wa, wb = (w[a] - w[c]) * per_area, (w[b] - w[c]) * per_area
        row_w = w[c] + wa * np.float32(edge_a) + wb * np.float32(edge_b)
        right_w = (wa * np.float32(by - cy) + wb * np.float32(cy - ay)) * np.float32(256)
        down_w = (wa * np.float32(cx - bx) + wb * np.float32(ax - cx)) * np.float32(256)
        # On an edge a centre is inside if the edge is a top or a left one.
        edge_a -= not (cy < by or (cy == by and cx > bx))
        edge_b -= not (ay < cy or (ay == cy and ax > cx))
        edge_c -= not (by < ay or (by == ay and bx > ax))
        right_a, right_b, right_c = (by - cy) * 256, (cy - ay) * 256, (ay - by) * 256
        down_a, down_b, down_c = (cx - bx) * 256, (ax - cx) * 256, (bx - ax) * 256
        for row in range(y0, y1 + 1):
            pixel_a, pixel_b, pixel_c, pixel_w = edge_a, edge_b, edge_c, row_w
            for column in range(x0, x1 + 1):
                if (pixel_a | pixel_b | pixel_c) >= 0 and pixel_w > nearness[row, column]:
                    nearness[row, column] = pixel_w
                    ids[row, column] = t
                pixel_a += right_a
                pixel_b += right_b
                pixel_c += right_c
                pixel_w += right_w
            edge_a += down_a
            edge_b += down_b
            edge_c += down_c
            row_w += down_w
    return ids


@numba.njit
def textbook_zbuffer(pixels, depth, triangles, height, width):
    """The z-buffer that most face code copies, as an algorithm: all triangles, weights anew at each pixel, in float32.

    No culling, no stepping, no rule for edges: pixels on a shared edge belong to whichever triangle came first.
    """
    ids = np.full((height, width), -1, np.int32)
    nearest = np.full((height, width), np.float32(np.inf), np.float32)
    half = np.float32(0.5)
    for t in range(len(triangles)):
        a, b, c = pixels[triangles[t, 0]], pixels[triangles[t, 1]], pixels[triangles[t, 2]]
        za, zb, zc = depth[triangles[t, 0]], depth[triangles[t, 1]], depth[triangles[t, 2]]
        x0 = max(int(np.ceil(min(a[0], b[0], c[0]) - half)), 0)
        x1 = min(int(np.floor(max(a[0], b[0], c[0]) - half)), width - 1)
        y0 = max(int(np.ceil(min(a[1], b[1], c[1]) - half)), 0)
        y1 = min(int(np.floor(max(a[1], b[1], c[1]) - half)), height - 1)
        ux, uy, vx, vy = c[0] - a[0], c[1] - a[1], b[0] - a[0], b[1] - a[1]
        uu, uv, vv = ux * ux + uy * uy, ux * vx + uy * vy, vx * vx + vy * vy
        for row in range(y0, y1 + 1):
            for column in range(x0, x1 + 1):
                px, py = column + half - a[0], row + half - a[1]
                up, vp = ux * px + uy * py, vx * px + vy * py
                determinant = uu * vv - uv * uv
                per = np.float32(0) if determinant == 0 else np.float32(1) / determinant
                wc, wb = (vv * up - uv * vp) * per, (uu * vp - uv * up) * per
                if wc >= 0 and wb >= 0 and wb + wc < 1:
                    z = (1 - wb - wc) * za + wb * zb + wc * zc
                    if z < nearest[row, column]:
                        nearest[row, column] = z
                        ids[row, column] = t
    return ids
