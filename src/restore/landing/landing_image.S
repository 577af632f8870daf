/* The landing executable, embedded: [predump_landing_image, predump_landing_image_end). */
    .section .rodata
    .balign 16
    .globl predump_landing_image
    .globl predump_landing_image_end
predump_landing_image:
    .incbin PREDUMP_LANDING_IMAGE
predump_landing_image_end:
    .section .note.GNU-stack, "", @progbits
