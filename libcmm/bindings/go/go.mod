module github.com/libcmm/libcmm/libcmm/bindings/go

go 1.21
