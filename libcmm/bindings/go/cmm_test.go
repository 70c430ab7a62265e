package cmm

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
)

var w = []float32{1, 0, 0, 1, 1, 1}

func TestSizesOfALayer(t *testing.T) {
	for _, c := range []struct {
		shape Shape
		says  error
	}{
		{Shape{Trees: 0, Depth: 1, In: 2, Out: 2}, ErrorTrees},
		{Shape{Trees: 1, Depth: 31, In: 2, Out: 2}, ErrorDepth},
		{Shape{Trees: 1, Depth: -1, In: 2, Out: 2}, ErrorDepth},
		{Shape{Trees: 1, Depth: 1 << 32, In: 2, Out: 2}, ErrorDepth},
		{Shape{Trees: 1, Depth: 1, In: -2, Out: 2}, ErrorDIn},
		{Shape{Trees: 1, Depth: 1, In: 1 << 62, Out: 2}, ErrorLayerTooLarge},
		{Shape{Trees: 1, Depth: 1, In: 2, Out: 2, Tie: 7}, ErrorTie},
	} {
		if _, err := New(c.shape, w, w, nil); !errors.Is(err, c.says) {
			t.Errorf("%+v: %v", c.shape, err)
		}
	}
	_, err := New(Shape{Trees: 1, Depth: 1, In: 2, Out: 2}, w, w, []float32{})
	var size *SizeError
	if !errors.As(err, &size) || *size != (SizeError{"bias", 0, 3}) {
		t.Error(err)
	}
}

func TestSizesOfABatch(t *testing.T) {
	layer, err := New(Shape{Trees: 1, Depth: 1, In: 2, Out: 2}, w, w, nil)
	if err != nil {
		t.Fatal(err)
	}
	y := []float32{7, 7, 7, 7}
	for says, err := range map[string]error{
		"x has 3 numbers; it should have a multiple of 2": layer.Forward(make([]float32, 3), y, nil, Run{}),
		"y has 4 numbers; it should have 2":               layer.Forward(make([]float32, 2), y, nil, Run{}),
		"nodes has 3 numbers; it should have 4": layer.Forward(make([]float32, 4), y,
			&Path[float32]{Nodes: make([]int32, 3)}, Run{}),
		"logits has 1 numbers; it should have 2": layer.PathOf(make([]float32, 2),
			&Path[float32]{Logits: make([]float32, 1)}, Run{}),
	} {
		if err == nil || err.Error() != says {
			t.Error(err)
		}
	}
	for says, run := range map[Status]Run{ErrorLevel: {Level: "none"}, ErrorMethod: {Algorithm: "none"}} {
		if err := layer.Forward(make([]float32, 4), y, nil, run); err != says {
			t.Error(err)
		}
	}
	if !slices.Equal(y, []float32{7, 7, 7, 7}) {
		t.Error("written to")
	}
	if err := layer.Forward(nil, nil, nil, Run{}); err != nil {
		t.Error(err)
	}
}

// Goroutines that share a layer, while the garbage collector runs.
func TestPinned(t *testing.T) {
	layer, _ := New(Shape{Trees: 1, Depth: 1, In: 2, Out: 2, Activation: Relu}, slices.Clone(w), []float32{1, 2, 3, 4, 5, 6}, nil)
	var all sync.WaitGroup
	for k := 0; k < 8; k++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for turn := 0; turn < 100; turn++ {
				y := make([]float32, 4)
				if err := layer.Forward([]float32{1, 2, -1, 3}, y, nil, Run{}); err != nil {
					t.Error(err)
				}
				if !slices.Equal(y, []float32{16, 20, 9, 12}) {
					t.Error(y)
				}
				runtime.GC()
			}
		}()
	}
	all.Wait()
}
