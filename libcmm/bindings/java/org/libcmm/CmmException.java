package org.libcmm;

/** A status of libcmm that is not CMM_OK. No output has been touched. */
public final class CmmException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** One of {@code Abi.CMM_ERROR_...}. */
    public final int status;

    CmmException(int status) {
        super(Libcmm.statusName(status) + ": " + Libcmm.statusMessage(status));
        this.status = status;
    }

    static void check(int status) {
        if (status != Abi.CMM_OK) {
            throw new CmmException(status);
        }
    }
}
