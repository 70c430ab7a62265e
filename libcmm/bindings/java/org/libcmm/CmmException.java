package org.libcmm;

import com.sun.jna.Pointer;

/** A status of libcmm that is not CMM_OK. No output has been touched. */
public final class CmmException extends RuntimeException {
    private static final long serialVersionUID = 1;

    /** One of {@code Abi.CMM_ERROR_...}. */
    public final int status;

    CmmException(int status) {
        super(text("cmm_status_name", status) + ": " + text("cmm_status_message", status));
        this.status = status;
    }

    private static String text(String function, int status) {
        return ((Pointer) Layer.LIBCMM.getFunction(function).invoke(Pointer.class, new Object[] {status})).getString(0);
    }

    static void check(int status) {
        if (status != Abi.CMM_OK) {
            throw new CmmException(status);
        }
    }
}
