// Package cmm runs fast feedforward layers on the CPU, by libcmm.
//
// Arrays are slices, row-major; a batch is as large as x says. Nothing is copied: slices are pinned for as long as a
// call takes. Everything is checked before anything is written.
package cmm

// #cgo pkg-config: cmm
// #include <cmm.h>
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"
)

// Error says what libcmm means by a status.
func (status Status) Error() string {
	code := C.cmm_status(status)
	return C.GoString(C.cmm_status_name(code)) + ": " + C.GoString(C.cmm_status_message(code))
}

func check(code C.cmm_status) error {
	if code == C.CMM_OK {
		return nil
	}
	return Status(code)
}

// SizeError is an array of another size than the layer wants.
type SizeError struct {
	Name       string
	Is, Should int
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("%s has %d numbers; it should have %d", e.Name, e.Is, e.Should)
}

// TokensError is a batch that ends within a token.
type TokensError struct {
	Is, Width int
}

func (e *TokensError) Error() string {
	return fmt.Sprintf("x has %d numbers; it should have a multiple of %d", e.Is, e.Width)
}

func checkSize(name string, is, should int) error {
	if is == should {
		return nil
	}
	return &SizeError{name, is, should}
}

// Real is a type of tokens.
type Real interface{ float32 | float64 }

// Shape is what a layer is, but for its weights.
type Shape struct {
	Trees      int // at least 1
	Depth      int // edges from root to leaf, 0 to MaxDepth
	In, Out    int // the widths of a token and of an output
	Activation Activation
	Tie        Tie
}

// FFF is a fast feedforward layer on the slices that it was made of, which it keeps. Many goroutines may use it at once.
type FFF[T Real] struct {
	shape             Shape
	wIn, wOut, biases []T
}

// New makes a layer of wIn[trees][nodes][In], wOut[trees][nodes][Out] and bias[trees][nodes] or nil, with
// nodes = 2^(Depth+1) - 1 in heap order.
func New[T Real](shape Shape, wIn, wOut, bias []T) (*FFF[T], error) {
	layer := &FFF[T]{shape, wIn, wOut, bias}
	if shape.Depth < 0 || shape.Depth > MaxDepth { // of which an int32 would keep the lower half
		return nil, ErrorDepth
	}
	raw := layer.describe()
	// Any address that is a multiple of 8: sizes are checked before the arrays are looked at, and nothing is read.
	var memory, bytes C.int64_t
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&memory)
	raw.w_in, raw.w_out = unsafe.Pointer(&memory), unsafe.Pointer(&memory)
	if err := check(C.cmm_fff_pack_size(&raw, &bytes)); err != nil {
		return nil, err
	}
	rows := shape.Trees * (2<<shape.Depth - 1)
	if err := checkSize("w_in", len(wIn), rows*shape.In); err != nil {
		return nil, err
	}
	if err := checkSize("w_out", len(wOut), rows*shape.Out); err != nil {
		return nil, err
	}
	if bias != nil {
		if err := checkSize("bias", len(bias), rows); err != nil {
			return nil, err
		}
	}
	return layer, nil
}

// describe is the layer for C, without its weights.
func (layer *FFF[T]) describe() (raw C.cmm_fff) {
	raw.size = C.uint32_t(unsafe.Sizeof(raw))
	raw.dtype = C.CMM_F32
	if unsafe.Sizeof(*new(T)) == 8 {
		raw.dtype = C.CMM_F64
	}
	raw.activation = C.int32_t(layer.shape.Activation)
	raw.tie = C.int32_t(layer.shape.Tie)
	raw.depth = C.int32_t(layer.shape.Depth)
	raw.trees = C.int64_t(layer.shape.Trees)
	raw.d_in = C.int64_t(layer.shape.In)
	raw.d_out = C.int64_t(layer.shape.Out)
	return raw
}

// pin keeps a slice where it is, and gives its address, nil for none.
func pin[T any](pinner *runtime.Pinner, slice []T) unsafe.Pointer {
	if len(slice) == 0 {
		return nil
	}
	pinner.Pin(&slice[0])
	return unsafe.Pointer(&slice[0])
}

// Run is how to run a call; its zero is the best here.
type Run struct {
	Threads   int32  // at most so many; 0: every core that the process may use
	Level     string // "native", ...; "" picks
	Algorithm string // of level native: "per_token", "grouped"; "" picks
}

// Path is where the path goes: slices of [batch][trees][Depth+1], of which one may be nil.
type Path[T Real] struct {
	Nodes  []int32
	Logits []T
}

// Forward sets y[batch][Out] to the layer applied to x[batch][In], and path, where it is not nil, to the path.
func (layer *FFF[T]) Forward(x, y []T, path *Path[T], run Run) error {
	return layer.call(x, y, path, run, false)
}

// PathOf is the path alone: which nodes the tokens visit, and their logits.
func (layer *FFF[T]) PathOf(x []T, path *Path[T], run Run) error {
	return layer.call(x, nil, path, run, true)
}

func (layer *FFF[T]) call(x, y []T, path *Path[T], run Run, alone bool) error {
	shape := layer.shape
	if shape.In == 0 { // of no layer that New has made
		return ErrorDIn
	}
	if len(x)%shape.In != 0 {
		return &TokensError{len(x), shape.In}
	}
	batch := len(x) / shape.In
	if !alone {
		if err := checkSize("y", len(y), batch*shape.Out); err != nil {
			return err
		}
	}
	if path == nil {
		path = &Path[T]{}
	}
	visits := batch * shape.Trees * (shape.Depth + 1)
	if path.Nodes != nil {
		if err := checkSize("nodes", len(path.Nodes), visits); err != nil {
			return err
		}
	}
	if path.Logits != nil {
		if err := checkSize("logits", len(path.Logits), visits); err != nil {
			return err
		}
	}
	// cgo checks that whatever the structs point to is pinned, or is memory of C.
	var pinner runtime.Pinner
	defer pinner.Unpin()
	raw := layer.describe()
	raw.w_in, raw.w_out, raw.bias = pin(&pinner, layer.wIn), pin(&pinner, layer.wOut), pin(&pinner, layer.biases)
	var how C.cmm_run
	how.size = C.uint32_t(unsafe.Sizeof(how))
	how.threads = C.int32_t(run.Threads)
	how.level = word(&pinner, run.Level)
	setAlgorithm(&how, word(&pinner, run.Algorithm))
	px, py := pin(&pinner, x), pin(&pinner, y)
	nodes, logits := (*C.int32_t)(pin(&pinner, path.Nodes)), pin(&pinner, path.Logits)
	if alone {
		return check(C.cmm_cmm_forward(&raw, &how, C.int64_t(batch), px, nodes, logits))
	}
	return check(C.cmm_fff_forward(&raw, &how, C.int64_t(batch), px, py, nodes, logits))
}

// word is a string that ends with 0, nil for none.
func word(pinner *runtime.Pinner, name string) *C.char {
	if name == "" {
		return nil
	}
	return (*C.char)(pin(pinner, append([]byte(name), 0)))
}

// setAlgorithm sets a field that is one of two names in C, of which cgo makes an array of bytes.
func setAlgorithm(run *C.cmm_run, name *C.char) {
	*(**C.char)(unsafe.Add(unsafe.Pointer(&run.isa), unsafe.Sizeof(run.isa))) = name
}

// Version is that of the library that is running.
func Version() string { return C.GoString(C.cmm_version()) }
