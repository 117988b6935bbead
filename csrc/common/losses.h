// The losses of one logit or one delta, and their derivatives. Written once for float and for the CPU's vectors of
// floats (F): the exponential is the caller's, as each machine has its own.
#pragma once

#include "types.h"

namespace gid {

constexpr float kFocalAlpha = 0.25f;  // torchvision's sigmoid_focal_loss; its gamma is 2

// What sigmoid cross-entropy needs of a logit x, from e = exp(-|x|): one division, no logarithm, no cancellation.
template <typename F>
struct Sigmoid {
  F p, q;          // sigmoid(x), sigmoid(-x)
  F log_1_plus_e;  // log(1 + e): softplus(x) is max(x, 0) more

  GID_HD Sigmoid(const F& x, const F& e) {
    const F one_more = e + 1.0f, two_more = e + 2.0f;
    F both = one_more * two_more;
    invert(both);
    const F large = two_more * both, small = e * large;  // 1 / (1 + e), e / (1 + e)
    p = x >= 0.0f ? large : small;
    q = x >= 0.0f ? small : large;
    // log(1 + e) = 2 atanh(e / (2 + e)), whose argument is at most 1/3: seven terms leave 1e-8 of it.
    const F s = e * one_more * both, square = s * s;
    F series = square * (1.0f / 13) + 1.0f / 11;
    horner(series, square, 1.0f / 9);
    horner(series, square, 1.0f / 7);
    horner(series, square, 1.0f / 5);
    horner(series, square, 1.0f / 3);
    horner(series, square, 1.0f);
    log_1_plus_e = 2.0f * s * series;
  }
};

// Focal loss of a background class with logit z: (1 - alpha) sigmoid(z)^2 softplus(z). That of an object's class with
// logit x is the same of z = -x, with alpha in place of 1 - alpha; its derivative by x is minus that by z.
template <typename F>
struct Focal {
  F loss, derivative;  // both without the factor alpha or 1 - alpha

  GID_HD Focal(const F& z, const F& e) {
    const Sigmoid<F> sigmoid(z, e);
    const F softplus = (z < 0.0f ? F{} : z) + sigmoid.log_1_plus_e, square = sigmoid.p * sigmoid.p;
    loss = square * softplus;
    derivative = square * (2.0f * sigmoid.q * softplus + sigmoid.p);
  }
};

// The same for z <= -2, where nearly all of a detector's background lies, from e = exp(z) alone: no division, no choice.
// Both are e^3 times a smooth function, whose polynomial is within 2e-7 of it (minimax up to e^-2).
template <typename F>
struct FocalTail {
  F cube, loss, derivative;  // the latter two without the factor cube

  GID_HD explicit FocalTail(const F& e) {
    cube = e * e * e;
    loss = F{} - 6.90800619f;
    horner(loss, e, 8.10975742f);
    horner(loss, e, -6.37671185f);
    horner(loss, e, 4.33207941f);
    horner(loss, e, -2.49998546f);
    horner(loss, e, 1.0f);
    derivative = F{} - 52.0171661f;
    horner(derivative, e, 55.7634048f);
    horner(derivative, e, -38.1523132f);
    horner(derivative, e, 21.6557102f);
    horner(derivative, e, -9.99987125f);
    horner(derivative, e, 2.99999976f);
  }
};

GID_HD float positive_part(float x) { return x < 0.0f ? 0.0f : x; }  // NaN for NaN

// L_cls of the response loss between a student's and a teacher's logit, by student. exp(-|x|) of each is given.
struct Response {
  float loss, derivative;

  GID_HD Response(float student, float teacher, float student_e, float teacher_e, bool soft_focal) {
    const Sigmoid<float> s(student, student_e), t(teacher, teacher_e);
    const float cross_entropy = positive_part(student) - student * t.p + s.log_1_plus_e;
    if (!soft_focal) {
      const float entropy = positive_part(teacher) - teacher * t.p + t.log_1_plus_e;
      loss = cross_entropy - entropy;
      derivative = s.p - t.p;
      return;
    }
    const float alpha = kFocalAlpha * t.p + (1.0f - kFocalAlpha) * t.q;
    const float gap = s.p - t.p;
    loss = alpha * gap * gap * cross_entropy;
    derivative = alpha * gap * (2.0f * s.p * s.q * cross_entropy + gap * gap);
  }
};

// Smooth L1 with the parabola up to beta > 0. A zero difference has a zero derivative; NaN has NaN.
struct SmoothL1 {
  float loss, derivative;

  GID_HD SmoothL1(float difference, float beta) {
    const float size = fabsf(difference);
    loss = size < beta ? 0.5f * size * size / beta : size - 0.5f * beta;
    derivative = size < beta ? difference / beta : (difference > 0.0f ? 1.0f : difference < 0.0f ? -1.0f : difference);
  }
};

}  // namespace gid
